"""One page that explains runs: figures (`groups`), plots (`charts`), and the page (`page`)."""
