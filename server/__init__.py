"""The service: processes, queues and doors around a world model and a planner."""
