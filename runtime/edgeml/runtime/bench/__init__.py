"""`edgeml bench`: how fast a bundle's artifacts are on this board or on one behind ssh, and how sure that is."""
