/* Search in pages opened from a disk, where browsers start no workers: the worker's script runs in
   a hidden frame instead. Served by a server, the browser's own workers are used. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true })
      document.body.appendChild(this.frame)
      const page = this.frame.contentDocument
      page.open()
      page.write(
        "<script>postMessage = parent.postMessage.bind(parent);" +
          "importScripts = () => {}</" + "script>" +
          `<script src="${url}"></` + "script>"
      )
      page.close()
      this.ready = new Promise(done => (this.frame.contentWindow.onload = done))
      addEventListener("message", event => {
        if (event.source !== window && event.source !== this.frame.contentWindow) return
        const told = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(told)
        if (this.onmessage) this.onmessage(told)
      })
    }

    postMessage(data) {
      this.ready.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
      )
    }

    terminate() {
      this.frame.remove()
    }
  }
}
