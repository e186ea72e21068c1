"""The pilot in a block: claims tasks, places them on the node, runs them and records what became of them."""
