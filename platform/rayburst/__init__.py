"""rayburst: an elastic ML platform on Ray."""
