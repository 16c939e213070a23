"""The engine's gRPC service: its definition, the generated stubs and the client.

`engine_pb2*.py` and `.pyi` are generated and never edited; after a change of
`engine.proto` write them anew with `make proto`, which runs in the root of the repository

    python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. \
        --mypy_out=. --mypy_grpc_out=. app/rpc/engine.proto

(a test compares them with what that command writes).
"""
