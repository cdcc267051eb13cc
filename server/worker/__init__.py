"""What runs inside an engine process. Only this package of the service imports torch, networks and planners."""
