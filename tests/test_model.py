import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dpo_core.model
from dpo_core.errors import InputError
from dpo_core.formats.hf_layout import PUBLISHED
from dpo_core.kernels.precision import DTYPES, autocast
from dpo_core.model import GPT, GPTConfig, attention

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {"vocab_size": 97, "n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4}


def scrambled(model, seed=0, scale=0.1):
    """Noise on every parameter, so that a bias or a norm put in the wrong place is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def small_gpt(**shape) -> GPT:
    torch.manual_seed(0)
    return scrambled(GPT(GPTConfig(**SHAPE | shape)))


def transformers_gpt2(scale=0.1, **shape):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return scrambled(GPT2LMHeadModel(GPT2Config(**shape)), scale=scale)


def random_ids(rows, length, vocab_size=97):
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


# Against transformers

SIZES = [
    pytest.param(SHAPE, 0.1, id="small"),
    pytest.param({}, 0.02, id="124M", marks=pytest.mark.slow),  # GPT2Config's defaults are GPT-2's
]


@pytest.mark.parametrize(("shape", "scale"), SIZES)
@torch.no_grad()
def test_transformers_checkpoint_gives_the_same_logits(tmp_path, shape, scale):
    theirs = transformers_gpt2(scale, **shape)
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    ids = random_ids(2, 24)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(("shape", "scale"), SIZES)
@torch.no_grad()
def test_our_checkpoint_gives_the_same_logits_in_transformers(tmp_path, shape, scale):
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    ours = scrambled(GPT(GPTConfig(**shape)), scale=scale)
    ours.save_pretrained(tmp_path)
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = random_ids(2, 24)
    torch.testing.assert_close(theirs.eval()(ids).logits, ours(ids), atol=1e-4, rtol=0)
    assert theirs.config.eos_token_id == (50256 if ours.config.vocab_size == 50257 else None)


def test_gpt2_has_124_million_parameters():
    with torch.device("meta"):
        model = GPT(GPTConfig())
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


# The Hub


ANOTHER, COMMIT = "someone/gpt2-tiny", "607a30d783dfa663caf39e06633721c8d4cfcd7e"


class Hub:
    """A server that speaks the Hub's protocol for resolving files, on a free port of this machine.

    As on the Hub, weights lie in a storage of another name, to which it redirects; ``broken`` ones end half-way.
    """

    def __init__(self, files: dict[str, bytes], broken: bool = False) -> None:
        requests: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                requests.append(f"{self.command} {self.path}")
                if self.path.startswith("/api/models/"):
                    return self.listing()
                at, _, file = self.path.replace(COMMIT, "main").partition("/resolve/main/")
                repo, stored = at.removeprefix("/storage").removeprefix("/"), at.startswith("/storage/")
                found = files.get(file) if repo in (*PUBLISHED.values(), ANOTHER) else None
                elsewhere = found is not None and file == "model.safetensors" and not stored
                self.send_response(404 if found is None else 302 if elsewhere else 200)
                if found is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                etag = f'"{abs(hash(found)):032x}"'
                if elsewhere:
                    self.send_header("Location", f"http://localhost:{self.server.server_port}/storage{self.path}")
                    self.send_header("X-Linked-ETag", etag)
                    self.send_header("X-Linked-Size", str(len(found)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", etag)
                body = b"" if found is None or elsewhere else found
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                return body[: len(body) // 2] if broken and stored else body

            def listing(self):
                told = {  # the fields that every release of huggingface_hub asks for
                    **{"id": ANOTHER, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]},
                    **{"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []},
                }
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                    for name, content in files.items()
                ]
                listed = tree if "/tree/" in self.path else told
                body = json.dumps(listed).encode() if ANOTHER in self.path else b"{}"
                self.send_response(200 if ANOTHER in self.path else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                return body

            def do_GET(self):
                self.wfile.write(self.do_HEAD())

            def log_message(self, *args):
                pass

        self.requests = requests
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def in_subprocess(code: str, endpoint: str, home: Path) -> subprocess.CompletedProcess:
    """Run code with the real client: it reads its settings from the environment when it is imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    environment = kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


LOGITS = """
import json, torch
from dpo_core.model import GPT
from dpo_core.formats.hf_layout import PUBLISHED
for name in PUBLISHED:
    model = GPT.from_pretrained(name)
    with torch.no_grad():
        print(json.dumps([name, model.config.tokenizer, model(torch.arange(12)[None]).tolist()]))
"""

REFUSED = """
from dpo_core.errors import InputError
from dpo_core.model import GPT
try:
    GPT.from_pretrained("gpt2")
except InputError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def published():
    """A small GPT-2 and its files as published: bare keys, the causal mask as a buffer, no tokenizer named."""
    from safetensors.torch import save

    model = transformers_gpt2(**SHAPE)
    tensors = {
        k.removeprefix("transformer."): v.contiguous() for k, v in model.state_dict().items() if "lm_head" not in k
    }
    for layer in range(SHAPE["n_layer"]):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(24, 24).tril()[None, None]
    config = {
        **SHAPE,
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 24,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }
    return model, {"config.json": json.dumps(config).encode(), "model.safetensors": save(tensors, {"format": "pt"})}


def assert_published(model, result: subprocess.CompletedProcess) -> None:
    """Each of the published names gave this model, with GPT-2's tokenizer."""
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row[:2] for row in rows] == [[name, "gpt2"] for name in PUBLISHED]
    with torch.no_grad():
        expected = model(torch.arange(12)[None]).logits
    for _, _, logits in rows:
        torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_published_models_come_from_the_hub_and_then_from_its_cache(published, tmp_path):
    """Under each name of GPT-2's sizes, from its own repository, the weights by a redirect."""
    theirs, files = published
    with Hub(files) as hub:
        online = in_subprocess(LOGITS, hub.address, tmp_path)
    assert_published(theirs, online)
    for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        assert f"GET /openai-community/{name}/resolve/main/config.json" in hub.requests
        assert f"GET /storage/openai-community/{name}/resolve/main/model.safetensors" in hub.requests

    offline = in_subprocess(LOGITS, hub.address, tmp_path)  # the server is gone
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout == online.stdout


@pytest.mark.slow
def test_another_model_of_the_hub_comes_by_its_full_id_without_its_pickles(published, tmp_path):
    """Config, weights and the tokenizer's files alone; then from the cache."""
    theirs, files = published
    beside = {"pytorch_model.bin": b"x", "training_args.bin": b"x", "README.md": b"x", "merges.txt": b"#version: 0.2\n"}
    code = LOGITS.replace("in PUBLISHED", f"in [{ANOTHER!r}]")
    with Hub(files | beside) as hub:
        online = in_subprocess(code, hub.address, tmp_path)
        missing = in_subprocess(REFUSED.replace("gpt2", "nobody/none"), hub.address, tmp_path)
    assert online.returncode == 0, online.stderr
    with torch.no_grad():
        expected = theirs(torch.arange(12)[None]).logits
    torch.testing.assert_close(torch.tensor(json.loads(online.stdout)[2]), expected, atol=1e-4, rtol=0)
    fetched = {line.rpartition("/")[2] for line in hub.requests if f"{ANOTHER}/resolve" in line}
    assert fetched == {"config.json", "model.safetensors", "merges.txt"}
    assert "nobody/none is no folder here, and could not be fetched" in missing.stdout, missing.stderr

    offline = in_subprocess(code, hub.address, tmp_path)  # the server is gone
    assert offline.stdout == online.stdout, offline.stderr


@pytest.mark.slow  # the client tries again five times
def test_a_download_that_breaks_off_is_a_clear_error_and_the_next_one_is_whole(published, tmp_path):
    """What came of the file is not taken for the file."""
    theirs, files = published
    with Hub(files, broken=True) as hub:
        result = in_subprocess(REFUSED, hub.address, tmp_path)
    assert "model.safetensors of openai-community/gpt2 could not be fetched" in result.stdout, result.stderr
    with Hub(files) as hub:
        assert_published(theirs, in_subprocess(LOGITS, hub.address, tmp_path))


@pytest.mark.slow  # the client tries again for half a minute
def test_no_network_is_a_clear_error(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    result = in_subprocess(REFUSED, closed, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "config.json of openai-community/gpt2 could not be fetched" in result.stdout
    assert "check the network, or take the model pocket" in result.stdout


def test_a_repository_without_safetensors_is_a_clear_error(published, tmp_path):
    with Hub({"config.json": published[1]["config.json"]}) as hub:
        result = in_subprocess(REFUSED, hub.address, tmp_path)
    assert "model.safetensors of openai-community/gpt2 could not be fetched" in result.stdout, result.stderr


# Folders


def test_save_and_load_is_exact(tmp_path):
    model = small_gpt(tokenizer="pocket")
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = GPT.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert not loaded.training
    for (name, saved), (_, got) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(saved, got), name
        assert got.requires_grad and got.is_contiguous() and got.dtype == torch.float32, name
    loaded(random_ids(1, 4)).sum().backward()


def test_a_loaded_model_survives_its_folder_being_overwritten(tmp_path):
    small_gpt().save_pretrained(tmp_path)
    loaded, expected = GPT.from_pretrained(tmp_path), small_gpt()(random_ids(1, 4))
    GPT(GPTConfig(**SHAPE)).save_pretrained(tmp_path)
    assert torch.equal(loaded(random_ids(1, 4)), expected)
    loaded.save_pretrained(tmp_path)
    assert torch.equal(GPT.from_pretrained(tmp_path)(random_ids(1, 4)), expected)


def test_half_precision_files_are_read_as_float32(tmp_path):
    small_gpt().half().save_pretrained(tmp_path)
    assert {p.dtype for p in GPT.from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_dropout_starts_at_zero(tmp_path):
    small_gpt(dropout=0.1).save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).config.dropout == 0


def change_config(folder: Path, **change) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


FAULTS = {
    "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json \(the folder holds model\.safetensors\)"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors \(.*holds config\.json\)"),
    "only pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"holds pytorch_model\.bin and no safetensors; such a file can be a pickle, which runs code .* save the",
    ),
    "cut off": (truncate, "model.safetensors: not a whole safetensors file .* download it again"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
    "config cut off": (
        lambda f: (f / "config.json").write_text('{"model_type": "gp'),
        "config.json: not readable as JSON",
    ),
    "config not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "config.json: not readable as JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), r"config.json: holds \[\] where {...} must be"),
    "other architecture": (lambda f: change_config(f, model_type="llama"), "config.json: model_type must be 'gpt2'"),
    "other activation": (
        lambda f: change_config(f, activation_function="relu"),
        'config.json: activation_function is "relu", but only "gelu_new"',
    ),
    "other epsilon": (lambda f: change_config(f, layer_norm_epsilon=1e-6), "layer_norm_epsilon is 1e-06"),
    "heads do not divide": (
        lambda f: change_config(f, n_head=5),
        "config.json: n_embd 32 is not a multiple of n_head 5",
    ),
    "no heads": (lambda f: change_config(f, n_head=0), "config.json: n_head must be a whole number above 0, not 0"),
    "tokenizer as number": (
        lambda f: change_config(f, tokenizer=3),
        "config.json: tokenizer must be a name, not 3",
    ),
    "size as text": (lambda f: change_config(f, n_layer="3"), "n_layer must be a whole number above 0, not '3'"),
    "other size": (
        lambda f: change_config(f, n_embd=64),
        r"shapes do not fit config\.json: h\.0\.attn\.c_attn\.bias \(96,\) instead of \(192,\).* and \d+ more",
    ),
    "one shape": (
        lambda f: change_tensors(f, lambda t: t.update({"transformer.wpe.weight": torch.zeros(25, 32)})),
        r"shapes do not fit config\.json: wpe\.weight \(25, 32\) instead of \(24, 32\)$",
    ),
    "missing tensor": (
        lambda f: change_tensors(f, lambda t: t.pop("transformer.h.1.ln_1.bias")),
        r"tensors are missing: h\.1\.ln_1\.bias$",
    ),
    "unknown tensor": (
        lambda f: change_tensors(f, lambda t: t.update({"transformer.h.0.lora_A": torch.zeros(2)})),
        r"tensors are unknown: h\.0\.lora_A$",
    ),
    "untied head": (
        lambda f: change_tensors(f, lambda t: t.update({"lm_head.weight": torch.zeros(97, 32)})),
        "lm_head.weight differs from wte.weight",
    ),
    "head of another size": (
        lambda f: change_tensors(f, lambda t: t.update({"lm_head.weight": torch.zeros(98, 32)})),
        "lm_head.weight differs from wte.weight",
    ),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_folder_is_refused(tmp_path, damage, message):
    small_gpt().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        GPT.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"no model 'gpt3'.*pocket, gpt2, gpt2-medium, gpt2-large, gpt2-xl"):
        GPT.from_pretrained("gpt3")


def test_a_tied_head_in_the_file_is_read(tmp_path):
    model = small_gpt()
    model.save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))
    assert torch.equal(GPT.from_pretrained(tmp_path).wte.weight, model.wte.weight)


# The forward pass


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logits():
    model, ids = small_gpt(), random_ids(2, 24)
    before = model(ids)
    for at in (1, 12, 23):
        changed = ids.clone()
        changed[:, at] = (changed[:, at] + 1) % 97
        after = model(changed)
        torch.testing.assert_close(after[:, :at], before[:, :at], atol=1e-5, rtol=0)
        assert (after[:, at:] - before[:, at:]).abs().amax(-1).min() > 1e-3  # and all later ones


@torch.no_grad()
def test_padding_on_the_right_changes_nothing():
    model, ids = small_gpt(), random_ids(2, 24)
    for length in (1, 7, 23):
        torch.testing.assert_close(model(ids)[:, :length], model(ids[:, :length]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [[1] * 24, [5, 1, 1, 17], [23, 1]], ids=str)
@torch.no_grad()
def test_a_cache_changes_nothing(steps):
    model, ids, cache = small_gpt(), random_ids(2, 24), []
    parts = [model.hidden(part, cache=cache) for part in ids.split(steps, dim=1)]
    torch.testing.assert_close(model.logits(torch.cat(parts, dim=1)), model(ids), atol=1e-5, rtol=0)
    assert len(cache) == 3 and cache[0][0].shape == (2, 24, 4, 8)


@torch.no_grad()
def test_a_mask_and_positions_put_two_answers_in_one_row():
    model, ids = small_gpt(), random_ids(1, 12)  # a prompt of 4, answers of 5 and 3
    segments = torch.tensor([0] * 4 + [1] * 5 + [2] * 3)
    mask = torch.ones(12, 12, dtype=torch.bool).tril() & ((segments[:, None] == segments) | (segments == 0))
    positions = torch.tensor([[*range(9), 4, 5, 6]])
    together = model.logits(model.hidden(ids, positions, mask))
    torch.testing.assert_close(together[:, :9], model(ids[:, :9]), atol=1e-5, rtol=0)
    second = torch.cat([ids[:, :4], ids[:, 9:]], dim=1)
    torch.testing.assert_close(together[:, 9:], model(second)[:, 4:], atol=1e-5, rtol=0)
    torch.testing.assert_close(model(ids, mask=torch.ones(12, 12, dtype=torch.bool).tril()), model(ids))


def test_too_long_a_sequence_is_refused():
    with pytest.raises(InputError, match="sequence of 25 tokens, but the model has 24 positions"):
        small_gpt()(random_ids(1, 25))
    cache = []
    model = small_gpt()
    model.hidden(random_ids(1, 24), cache=cache)
    with pytest.raises(InputError, match="sequence of 25 tokens"):
        model.hidden(random_ids(1, 1), cache=cache)


def test_dropout_acts_in_training_only():
    model, ids = small_gpt(dropout=0.5), random_ids(1, 8)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_the_initialisation_is_gpt2s():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, n_positions=64, n_embd=128, n_layer=8, n_head=4))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.h[3].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for part in (model.h[3].attn, model.h[3].mlp):
        assert part.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)  # sqrt(2 * 8 layers)
        assert not part.c_proj.bias.any()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_all_layers_share_one_bias_of_the_dtype_they_compute_in(precision, monkeypatch):
    """A mask would be turned into one in each layer, and kept there for the backward pass."""
    seen = []

    def noted(q, k, v, dropout, bias):
        seen.append((bias.untyped_storage().data_ptr(), bias.dtype, q.dtype))
        return attention(q, k, v, dropout, bias)

    monkeypatch.setattr(dpo_core.model, "attention", noted)
    model, ids = small_gpt(), random_ids(2, 9)
    with autocast(torch.device("cpu"), precision):
        model(ids, mask=torch.ones(9, 9, dtype=torch.bool).tril())
    assert len(seen) == model.config.n_layer > 1 and len(set(seen)) == 1
    assert seen[0][1] == seen[0][2] == DTYPES[precision]
