"""The smallest served model: it multiplies.

serve run serve_apps.doubler:app
curl -d '[1, 2, 3]' http://127.0.0.1:8000/predict
"""

import numpy as np

import rayburst as rb


@rb.serve.model(slo_ms=100, max_batch=32)
class Doubler:
    """Rows of three numbers, each times a factor."""

    example = np.zeros(3, np.float32)

    def load(self, factor: float = 2.0) -> None:
        """Called once on each replica."""
        self.factor = factor

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """One answer for each row."""
        return batch * self.factor


app = Doubler.bind(factor=3.0)  # type: ignore[attr-defined]  # mypy skips class decorators
