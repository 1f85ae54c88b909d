"""Update rules written out from the facts sheet (2.1, 2.2) for one tensor at a time, in float64."""

import torch

# Facts sheet 2.2, step 5: one triple for each of five rounds.
POLAR = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


class PlainModernMuon:
    """Steps 1 to 8 of facts sheet 2.2 for one m x n matrix."""

    def __init__(self, shape, beta2=0.9):
        m, n = shape
        self.M = torch.zeros(m, n, dtype=torch.float64)
        self.S = (
            torch.zeros(m, 1, dtype=torch.float64)
            if m >= n
            else torch.zeros(1, n, dtype=torch.float64)
        )
        self.beta2 = beta2

    def step(self, W, G, lr, mu, wd):
        m, n = W.shape
        self.M = mu * self.M + (1 - mu) * G
        X = (1 - mu) * G + mu * self.M
        X = X * (X.norm() / m**0.5) / X.norm(dim=1, keepdim=True).clamp(min=1e-6)
        X = X / (1.01 * X.norm() + 1e-6)
        for a, b, c in POLAR:
            if m > n:
                A = X.T @ X
                X = a * X + X @ (b * A + c * A @ A)
            else:
                A = X @ X.T
                X = a * X + (b * A + c * A @ A) @ X
        X = X * min(m, n) ** 0.5 / X.norm().clamp(min=1e-6)
        u = (X * X).mean(1, keepdim=True) if m >= n else (X * X).mean(0, keepdim=True)
        self.S = self.S + (1 - self.beta2) * (u - self.S)
        Y = X / self.S.clamp(min=1e-10).sqrt()
        Y = Y * X.norm() / Y.norm().clamp(min=1e-10)
        eta = lr * max(1.0, m / n) ** 0.5
        agree = (Y * W >= 0).to(W.dtype)
        return W - eta * Y - eta * wd * W * agree


class PlainClassicMuon:
    """Steps 1 to 5 of facts sheet 2.1; `dtype` is that of the iteration, bf16 in the original."""

    def __init__(self, shape, dtype):
        self.M, self.dtype = torch.zeros(shape, dtype=torch.float64), dtype

    def step(self, W, G, lr, mu):
        m, n = W.shape
        self.M = mu * self.M + (1 - mu) * G
        X = ((1 - mu) * G + mu * self.M).to(self.dtype)
        if m > n:
            X = X.T
        X = X / (X.norm() + 1e-7)
        for _ in range(5):
            A = X @ X.T
            X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
        if m > n:
            X = X.T
        return W - lr * max(1.0, m / n) ** 0.5 * X.double()


class PlainAdamW:
    """The modern AdamW of facts sheet 2.2."""

    def __init__(self, shape):
        self.m = torch.zeros(shape, dtype=torch.float64)
        self.v = torch.zeros(shape, dtype=torch.float64)
        self.t = 0

    def step(self, p, g, lr, betas, eps, wd):
        b1, b2 = betas
        self.t += 1
        p = p * (1 - lr * wd)
        self.m = self.m + (1 - b1) * (g - self.m)
        self.v = self.v + (1 - b2) * (g * g - self.v)
        return p - lr / (1 - b1**self.t) * self.m / ((self.v / (1 - b2**self.t)).sqrt() + eps)
