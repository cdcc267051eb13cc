"""The service: processes, queues and doors around a world model and a planner.

The way of a call, and where to read on:

- doors: `rest`, `grpc_service`, `openpi`, each with its codec; what every call goes through is in `door`
- application, free of transports and of torch: `app`; behind it `plan_calls`, `prediction_calls`, `embedding_calls`
- what a robot has here: `session`, `goals`, `stages`
- admission: `lanes` and `scheduler`; one `engine` stands for each engine process, `jobs` is what the two say
- inside an engine process, where torch is: `engine_process`, `searches` (plans), `errands` (everything else)

`__main__` puts it together from `settings`. Between the front and an engine go `jobs` alone, over `channel`.
"""
