"""Selected positions: which ones a selector means, as far as the client can tell."""

from collections.abc import Sequence

from actserve.positions import Positions, positions_to_proto


def selected(positions: Positions, prompt: int, run: Sequence[int]) -> list[int] | None:
    """The positions selected of a sequence that ran these tokens, the first `prompt` of them its
    prompt, ascending.

    None where it takes the text of the prompt, which only the server sees as the model does.
    """
    selector = positions_to_proto(positions)
    match selector.WhichOneof("selection"):
        case "all":
            return [*range(len(run))]
        case "last":
            return [prompt - 1]
        case "prompt":
            return [*range(prompt)]
        case "generated":
            return [*range(prompt, len(run))]
        case "list":
            listed = sorted(at + prompt if at < 0 else at for at in selector.list.positions)
            # A sample may end before it reaches all of them.
            return [at for at in listed if at < len(run)]
        case "span":
            bounds = selector.span
            start = bounds.start if bounds.HasField("start") else 0
            end = bounds.end if bounds.HasField("end") else len(run)
            start, end = (bound + prompt if bound < 0 else bound for bound in (start, end))
            return [*range(max(start, 0), min(end, len(run)))]
        case "token_ids":
            ids = {*selector.token_ids.ids}
            return [at for at, token in enumerate(run) if token in ids]
        case _:
            return None
