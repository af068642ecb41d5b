"""One file a loader, each a function `batches`."""
