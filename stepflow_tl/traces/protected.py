"""Mathematics and code in a text, inside which no sentence ends."""

from __future__ import annotations


class ProtectedSpans:
    """Which mathematics or code the text is in, read character by character.

    Dollars are told apart as pandoc does: one that opens has no white space after it, one that
    closes none before it and no digit after it. An opening dollar before a digit may be money: it
    protects nothing, and is forgotten at the end of its line.

    Attributes:
        kind: Empty in plain text; else ``$``, ``$$``, ``(`` or ``[`` (with a backslash), ``begin``
            for an environment of LaTeX, a backtick for inline code, or ``fence``.
        after_block: True after a display equation or fenced code, up to the next text.
    """

    def __init__(self) -> None:
        self.kind = ""
        self.after_block = False
        self._ticks = 0  # how many backticks close the open code
        self._is_money = False
        self._command = ""  # letters after a backslash
        self._depth = 0  # environments that are open
        self._run = ""  # "$", "`" or a backslash whose meaning depends on what follows
        self._run_size = 0
        self._run_opens_line = False
        self._before = "\n"  # the character before the run
        self._last = "\n"
        self._line_is_blank = True

    @property
    def protects(self) -> bool:
        """True where no boundary can be."""
        return self.kind != "" and not self._is_money

    @property
    def is_mathematics(self) -> bool:
        """Whether the text is in mathematics."""
        return self.kind not in ("", "`", "fence")

    def settle(self, char: str) -> None:
        """Give dollars and backticks their meaning now that `char` is seen to follow them."""
        if self._run in ("$", "`") and char != self._run:
            run, self._run = self._run, ""
            if run == "`":
                self._read_ticks(char)
            elif self._run_size == 1:
                self._read_dollar(char)
            else:
                self._read_dollars()

    def read(self, char: str) -> None:
        """Take the next character."""
        self.settle(char)
        if not char.isspace() and self._run == "":
            self.after_block = False
        if self._command:
            self._read_command(char)
        if self._run == "\\":
            self._run = ""
            self._read_escaped(char)
        elif self._run:
            self._run_size += 1
        elif char in "$`" or (char == "\\" and self.kind not in ("`", "fence")):
            self._run, self._run_size = char, 1
            self._run_opens_line, self._before = self._line_is_blank, self._last
        elif char == "\n":
            blank_line = self._line_is_blank and self.kind != "fence"
            if blank_line or self._is_money:
                self._close()
            self._line_is_blank = True
        self._line_is_blank = self._line_is_blank and char.isspace()
        self._last = char

    def _read_ticks(self, following: str) -> None:
        size = self._run_size
        if self.kind == "fence":
            if self._run_opens_line and size >= self._ticks and following.isspace():
                self._close()
        elif self.kind == "`":
            if size == self._ticks:
                self._close()
        elif not self.protects:
            self._open("fence" if self._run_opens_line and size >= 3 else "`")
            self._ticks = size

    def _read_dollar(self, following: str) -> None:
        closes = not self._before.isspace() and not following.isdigit()
        if self.kind == "$" and closes:
            self._close()
        elif not self.protects and not following.isspace():
            self._open("$")
            self._is_money = following.isdigit()

    def _read_dollars(self) -> None:
        if self.kind == "$$":
            self._close()
        elif not self.protects:
            self._open("$$")

    def _read_escaped(self, char: str) -> None:
        if char in "([" and not self.protects:
            self._open(char)
        elif (self.kind, char) in (("(", ")"), ("[", "]")):
            self._close()
        elif self.kind in ("", "begin"):
            self._command = char

    def _read_command(self, char: str) -> None:
        """Enter or leave an environment of LaTeX, whose last character closes its name's brace."""
        if self._command == "leaving":
            if char == "}":
                self._command = ""
                self._close()
        elif char.isalpha() and len(self._command) < len("begin"):
            self._command += char
        else:
            command, self._command = self._command, ""
            if (command, char) == ("begin", "{"):
                self._depth = self._depth + 1 if self.kind == "begin" else 1
                self._open("begin")
            elif (command, char, self.kind) == ("end", "{", "begin"):
                self._depth -= 1
                self._command = "" if self._depth else "leaving"

    def _open(self, kind: str) -> None:
        self.kind, self._is_money = kind, False

    def _close(self) -> None:
        self.after_block = self.kind in ("$$", "[", "begin", "fence")
        self.kind, self._is_money = "", False
