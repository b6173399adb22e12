/* Browsers start no worker for a page opened from disk. There, the search runs in a hidden frame instead. */
if (location.protocol === "file:") {
  const loader = (...urls) =>
    urls.reduce(
      (before, url) =>
        before.then(
          () =>
            new Promise((done, failed) => {
              const script = document.createElement("script");
              Object.assign(script, { src: url, onload: done, onerror: failed });
              document.body.appendChild(script);
            })
        ),
      Promise.resolve()
    );

  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      const inside = frame.contentDocument;
      inside.open();
      inside.write(
        "<html><body><script>" +
          'postMessage = data => parent.dispatchEvent(new MessageEvent("iframe-worker", { data }));' +
          `importScripts = ${loader};` +
          `<\/script><script src="${new URL(url, location.href)}"><\/script></body></html>`
      );
      inside.close();
      this.ready = new Promise((resolve) => frame.contentWindow.addEventListener("load", () => resolve(frame.contentWindow)));
      addEventListener("iframe-worker", ({ data }) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      });
    }

    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {}
  }

  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
}
