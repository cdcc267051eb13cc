"""The service: a world model and a planner behind gRPC and REST.

The folders, from the outside in; each imports only what stands below it:

- `serving`: settings to a running service
- `transport/`: gRPC, REST, openpi; uploads, health; `callers/`: keys and shares; every call goes through `gateway`
- `service/`: the application, free of transports and of torch: planning, prediction, embedding, goals, `sessions/`
- `recording/`: the flight recorder
- `engine/`: an engine as the front sees it: messages, process, admission, pool
- `observability/`: metrics and traces
- `values/`: requests, replies, images and tensors, defined once
- `errors`, `config`

`worker/` is what runs inside an engine process (`scheduling/`: what it does next), and the only folder that imports
torch, networks and planners. It shares
`engine/messages` and `values/` with the front, and nothing in the front imports it.
"""
