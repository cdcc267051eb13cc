"""Presage for ROS 2: images in, plans out. `bridge` is the logic, free of ROS; `node` puts it on the middleware."""
