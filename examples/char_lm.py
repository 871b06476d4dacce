"""Train a character-level LSTM language model in plain PyTorch.

It reads the 465 kB of help text in Python's own library (`pydoc_data.topics`), so it needs no
download. The defaults (plain SGD at a learning rate of 20, two layers of 200 units, batches of 20
sequences of 35 characters) are those of PyTorch's `word_language_model` example. That example clips
its gradients to a norm of 0.25. This script does not clip. So with its defaults the training
explodes within its first steps, and most seeds end far worse than a uniform guess:

    python examples/char_lm.py --seed 0

The same machine and the same arguments give the same numbers. Another Python version has another
help text and gives slightly different numbers.
"""

import argparse
import pydoc_data.topics

import torch
from torch import Tensor, nn

OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


class CharLM(nn.Module):
    """Predicts each character from the characters before it."""

    def __init__(self, vocabulary: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, hidden)
        self.lstm = nn.LSTM(hidden, hidden, num_layers=layers, batch_first=True)
        self.decode = nn.Linear(hidden, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (batch, time, vocabulary) for character ids (batch, time)."""
        states, _ = self.lstm(self.embed(ids))
        return self.decode(states)


def load_corpus() -> tuple[Tensor, int]:
    """Return the text as character ids, and the number of distinct characters."""
    topics = pydoc_data.topics.topics
    text = "".join(topics[name] for name in sorted(topics))
    ids = {character: index for index, character in enumerate(sorted(set(text)))}
    return torch.tensor([ids[character] for character in text]), len(ids)


def sample_windows(ids: Tensor, batch: int, seq: int) -> Tensor:
    """Return random stretches of the text, shape (batch, seq + 1)."""
    starts = torch.randint(len(ids) - seq, (batch, 1))
    return ids[starts + torch.arange(seq + 1)]


def next_character_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats per character, over windows (batch, seq + 1)."""
    logits = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ids: Tensor,
    args: argparse.Namespace,
) -> None:
    """Take `args.steps` optimizer steps, and print the loss every `args.log_every` steps."""
    model.train()
    for step in range(1, args.steps + 1):
        loss = next_character_loss(model, sample_windows(ids, args.batch, args.seq))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % args.log_every == 0 or step == args.steps:
            print(f"step {step:5d}  train loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def evaluate(model: nn.Module, ids: Tensor, seq: int) -> float:
    """Return the mean loss over all of `ids`, cut into windows of `seq` characters."""
    model.eval()
    windows = ids.unfold(0, seq + 1, seq)
    total = sum(
        next_character_loss(model, chunk).item() * len(chunk) for chunk in windows.split(64)
    )
    return total / len(windows)


def positive_int(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a character-level LSTM language model.")
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="sgd")
    parser.add_argument("--lr", type=float, default=20.0, help="learning rate")
    parser.add_argument("--steps", type=positive_int, default=400, help="optimizer steps")
    parser.add_argument("--batch", type=positive_int, default=20, help="sequences in a batch")
    parser.add_argument("--seq", type=positive_int, default=35, help="characters in a sequence")
    parser.add_argument("--hidden", type=positive_int, default=200, help="units in a layer")
    parser.add_argument("--layers", type=positive_int, default=2, help="LSTM layers")
    parser.add_argument("--seed", type=int, default=0, help="seeds the weights and the batches")
    parser.add_argument("--log-every", type=positive_int, default=50, metavar="STEPS")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the matrices are small: more threads mostly wait for each other

    ids, vocabulary = load_corpus()
    split = len(ids) * 9 // 10  # the last tenth of the text is for validation
    if args.seq >= len(ids) - split:
        raise SystemExit(f"--seq must be below {len(ids) - split}, the validation text's length")

    model = CharLM(vocabulary, args.hidden, args.layers)
    optimizer = OPTIMIZERS[args.optimizer](model.parameters(), lr=args.lr)
    train(model, optimizer, ids[:split], args)
    print(f"validation loss: {evaluate(model, ids[split:], args.seq):.4f} nats/char")


if __name__ == "__main__":
    main()
