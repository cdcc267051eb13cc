"""Presage on a Ray cluster: the application of `server` behind Ray Serve's proxies. Needs `ray[serve]`."""
