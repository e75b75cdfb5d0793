"""Classify with KServe's own client, which needs nothing of mlpconv: `pip install kserve numpy`.

    mlpconv export digits --out digits.onnx && mlpconv serve digits.onnx &
    python examples/deploy/kserve_client.py http://127.0.0.1:8000 digits 1 8 8

The arguments are the server, the model's name, and (C, H, W) of its images; random pixels are sent, as JSON and as raw
bytes. Checked by hand with kserve 0.21.0, as its dependencies exclude the versions that this package is tested with.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def main(url: str, model: str, shape: list[int]) -> None:
    """Ask whether the server is ready, and classify two images in both encodings."""
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    print("ready:", await client.is_server_ready(url), await client.is_model_ready(url, model))
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    for binary in (False, True):
        tensor = InferInput("images", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels, binary_data=binary)
        wanted = [RequestedOutput("probabilities", {"binary_data": binary})]
        request = InferRequest(model_name=model, infer_inputs=[tensor], request_outputs=wanted)
        answer = await client.infer(url, request, model_name=model)
        print("raw bytes:" if binary else "JSON:", answer.outputs[0].as_numpy().argmax(1))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], [int(side) for side in sys.argv[3:6]]))
