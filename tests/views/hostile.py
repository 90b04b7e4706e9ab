"""Texts that would like to be more than text."""

HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    '<img src=x onerror="window.pwned = 1">',
    '"><svg onload=window.pwned=1>',
    "<!-- --><style>body{display:none}</style>",
    "{{ 7 * 7 }} ${window.pwned = 1} `x`",
    r"\(\href{javascript:window.pwned=1}{x}\) \(\text{<script>window.pwned=1</script>}\)",
    "\u202eright to left\u202c \u2066isolated\u2069",
    "broken \ud800 surrogate",
    "null \x00 and escape \x1b[31m",
    "x" * 1_000_000,
    "",
    " \n\n ",
    "\u0301" * 200,
    "&lt;b&gt; &amp; &#x3c;script&#x3e;",
]
