// A page that is opened from a folder may start no worker, so here the page does the work of mkdocs' search worker.
// The index is a script there (docs/hooks.py), because a page from a folder may not read other files either.
if (location.protocol === "file:") {
  const load = (name) => new Promise((done, failed) => {
    const script = document.createElement("script");
    Object.assign(script, { src: `${base_url}/search/${name}`, onload: done, onerror: failed });
    document.head.append(script);
  });

  window.Worker = class {
    async init() {
      await Promise.all([load("lunr.js"), load("search_index.js")]);
      this.onmessage({ data: { config: searchIndex.config } });
      this.onmessage({ data: { allowSearch: true } });
    }

    search(query) {
      const { config, docs } = searchIndex;
      this.docs ??= new Map(docs.map((doc) => [doc.location, { ...doc, summary: doc.text.slice(0, 200) }]));
      lunr.tokenizer.separator = new RegExp(config.separator);
      this.index ??= lunr(function () {  // takes most of a second, so not before it is needed
        this.ref("location");
        this.field("title");
        this.field("text");
        docs.forEach((doc) => this.add(doc));
      });
      return this.index.search(query).map(({ ref }) => this.docs.get(ref));
    }

    postMessage({ init, query }) {
      if (init) this.init();
      else this.onmessage({ data: { results: this.search(query) } });
    }
  };
}
