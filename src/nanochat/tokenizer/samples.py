"""Fixed texts for comparing tokenizers, independent of their training text. Changing one changes
the table."""

ENGLISH = """The ferry left before sunrise, and by the time the fog lifted the harbour had shrunk to a grey line
behind us. Nobody spoke much. The cook handed round coffee in tin mugs, the mate counted the crates of
apples once more, and two children argued, in whispers, about whether a seal they'd seen was the same one
as yesterday. "It's got the scar," the older one said. "Lots of them have scars," said the other; it
didn't sound convinced. Around nine o'clock the wind turned to the north-west and the captain, who had
been steering with one hand and reading the newspaper with the other, folded the paper away. We would be
late, she told us, perhaps by three hours, perhaps by a day - the islands don't run to a timetable in
October.
"""

CODE = """from dataclasses import dataclass, field


@dataclass
class Account:
    owner: str
    balance: float = 0.0
    history: list[tuple[str, float]] = field(default_factory=list)

    def deposit(self, amount: float) -> None:
        if amount <= 0:
            raise ValueError(f"amount must be positive, got {amount!r}")
        self.balance += amount
        self.history.append(("deposit", amount))

    def transfer(self, other: "Account", amount: float, *, fee: float = 0.25) -> bool:
        total = amount + fee
        if total > self.balance:
            return False
        self.balance -= total
        other.deposit(amount)
        self.history.append(("transfer", -total))
        return True


if __name__ == "__main__":
    alice, bob = Account("alice", 100.0), Account("bob")
    for step in range(1, 6):
        ok = alice.transfer(bob, 10 * step)
        print(f"{step:>2} {'ok' if ok else 'refused':8s} {alice.balance:8.2f} {bob.balance:8.2f}")
"""

MATHS = r"""\begin{theorem}
Let $f\colon [a,b] \to \mathbb{R}$ be continuous, and differentiable on $(a,b)$. Then there is $\xi \in (a,b)$ with
\begin{equation}
  f'(\xi) = \frac{f(b) - f(a)}{b - a}.
\end{equation}
\end{theorem}
\begin{proof}
Put $g(x) = f(x) - \frac{f(b)-f(a)}{b-a}\,(x-a)$. Then $g(a) = g(b) = f(a)$, so by Rolle's theorem $g'(\xi) = 0$ for
some $\xi$, which is the claim.
\end{proof}
For example, $\sum_{k=1}^{n} k^2 = \tfrac{1}{6} n(n+1)(2n+1)$, hence $1^2 + 2^2 + \dots + 120^2 = 583220$, and
$\int_0^{\infty} x^{2} e^{-\lambda x}\,\mathrm{d}x = 2\lambda^{-3}$ for $\lambda > 0$. Numerically
$e^{\pi} \approx 23.1407$, $\sqrt{2} \approx 1.41421356$ and $\log_{10} 1024 \approx 3.0103$.
"""

KOREAN = """오늘 아침에는 비가 조금 내렸지만 점심때가 되자 하늘이 맑게 개었다. 나는 우산을 접고 시장까지
천천히 걸어갔다. 골목 끝에 있는 작은 빵집에서는 갓 구운 빵 냄새가 났고, 주인 할머니는 손님마다
웃으며 인사를 건넸다. "두 개에 3,000원이에요," 라고 할머니가 말씀하셨다. 나는 네 개를 사서
하나는 걸어가면서 먹고, 나머지는 종이봉투에 넣어 도서관으로 가져갔다. 도서관 2층 창가 자리에 앉아
책을 펼치면 멀리 강이 보인다. 여름에는 그곳에서 아이들이 물놀이를 하고, 겨울에는 얼음 위로 눈이
쌓인다. 책을 다 읽지 못하더라도 그 풍경을 바라보는 것만으로 하루가 길게 느껴진다.
"""

SAMPLES = {"English": ENGLISH, "code": CODE, "maths": MATHS, "Korean": KOREAN}
