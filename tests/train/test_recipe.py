from pathlib import Path

import pytest
import yaml

from ledom.core.direction import Direction
from ledom.core.errors import RecipeError
from ledom.data.prepare import prepare_data
from ledom.data.store import write_store
from ledom.text.tokenizer import train_tokenizer
from ledom.train.recipe import load_recipe, save_recipe
from made import SMALL_MODEL

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("**/*.yaml"))

TREE = {
    "name": "test",
    "data": {"num_documents": 10},
    "optim": {"steps": 7},
    **yaml.safe_load(SMALL_MODEL),
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(TREE))
    return file


def test_recipes_exist():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path):
    assert load_recipe(path).name


def test_overrides_beat_the_file_which_beats_defaults(recipe):
    plain = load_recipe(recipe)
    assert (plain.optim.steps, plain.train.batch_size, plain.seed) == (7, 32, 0)
    changed = load_recipe(recipe, ["optim.steps=9", "train.batch_size=4", "seed=3"])
    assert (changed.optim.steps, changed.train.batch_size, changed.seed) == (9, 4, 3)


def test_a_preset_may_be_named_or_overridden(recipe):
    named = load_recipe(recipe, ["model=tiny"])
    assert (named.model.hidden_size, named.model.num_hidden_layers) == (192, 6)
    for preset in ("{preset: tiny}", "tiny"):
        changed = load_recipe(recipe, [f"model={preset}", "model.num_hidden_layers=3"])
        assert (changed.model.hidden_size, changed.model.num_hidden_layers) == (192, 3)
    with pytest.raises(RecipeError, match=r"override 'model.heads=3': unknown key model.heads; va"):
        load_recipe(recipe, ["model=tiny", "model.heads=3"])
    for preset in ("{preset: tiny}", "tiny"):
        with pytest.raises(RecipeError, match=r"one key of the preset, write model.hidden_size=8$"):
            load_recipe(recipe, [f"model={preset}", "model.preset.hidden_size=8"])


def test_a_null_group_accepts_overrides(recipe):
    """A saved recipe spells out `lora: null`."""
    changed = load_recipe(recipe, ["init_from=x", "lora=null", "lora.rank=4"])
    assert changed.lora.rank == 4


@pytest.mark.parametrize("value", ["1e-3", "0.001", "1.0e-3"])
def test_a_rate_may_be_written_in_any_way(recipe, value):
    assert load_recipe(recipe, [f"optim.muon_lr={value}"]).optim.muon_lr == 0.001


@pytest.mark.parametrize("value", ["'a=b #1'", '"a=b #1" '])
def test_a_value_may_contain_special_characters(recipe, value):
    assert load_recipe(recipe, [f"data.train={value}"]).data.train == "a=b #1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.step=3", "unknown key optim.step; valid here: steps, matrix_optimizer, muon_lr,"),
        (
            "sede=3",
            "unknown key sede; valid here: name, seed, init_from, data, model, optim, train",
        ),
        ("model.layers=3", "unknown key model.layers; valid here: hidden_size,"),
        ("train.batch=3", "unknown key train.batch; valid here: batch_size,"),
        ("optim.steps=many", "key optim.steps is 'many'"),
        ("optim.steps=1.5", "key optim.steps is 1.5"),
        ("optim.steps=0", "key optim.steps is 0"),
        ("optim.muon_lr=.nan", "key optim.muon_lr is nan"),
        ("optim.warmup_steps=-1", "key optim.warmup_steps is -1"),
        ("seed=-1", "key seed is -1"),
        (f"seed={2**62 + 1}", "key seed is 4611686018427387905: Input should be less than or eq"),
        (f"data.seed={2**62 + 1}", "key data.seed is 4611686018427387905: Input should be less"),
        ("train.precision=fp8", "key train.precision is 'fp8'"),
        ("train=3", "key train is 3"),
        ("model.hidden_size=33", "hidden_size 33 is not an even multiple of num_attention_heads 2"),
        (
            "optim.steps=true",
            "key optim.steps is True: expected a number or text, got true or false",
        ),
        ("lora={}", "lora adapts a trained model: give its folder as init_from"),
        ("lora.ranks=3", "unknown key lora.ranks; valid here: rank, alpha, dropout"),
        (
            "objective.target=1",
            "objective.target and objective.contrastive need a file as data.train",
        ),
        ("data.pair_format='{question}'", "key data.pair_format is '{question}': pair format"),
        ("optim.steps", "override 'optim.steps': write it as key.key=value"),
        ("model=9b", "key model is '9b': no preset '9b'; the presets are tiny,"),
        ("name.first=x", "override 'name.first=x': name is a value, not a group of keys"),
        ("data.sources.0.path=x", "override 'data.sources.0.path=x': data.sources is a value, not"),
        ("data.seed.x=1", "override 'data.seed.x=1': key data.seed: Input should be a valid int"),
        ("data.pair_format={question} {solution}", "not YAML: "),
        (
            "data.sources=[{path: a, wieght: 2}]",
            "unknown key data.sources.0.wieght; valid here: path,",
        ),
        ("data.sources=[{path: a, weight: 0}]", "key data.sources.0.weight is 0"),
        ("data.packing=sliding", "key data.packing is 'sliding'"),
        ("name=/tmp/elsewhere", "key name is '/tmp/elsewhere': it names the run's folder: give"),
        ("name=../../x", "key name is '../../x': it names the run's folder"),
        ("name='..'", "key name is '..': it names the run's folder"),
        ("name=''", "key name is '': it names the run's folder"),
        ("name=a/b", "key name is 'a/b': it names the run's folder"),
        ('name="a\\0b"', "key name is 'a\\x00b': it names the run's folder"),
        ('name="a\\n"', "key name is 'a\\n': it names the run's folder"),
        (f"name={'x' * 61}", "it names the run's folder: give 1 to 60 letters"),
        ("name=2026-01-01", "name is datetime.date(2026, 1, 1): Input should be a valid string"),
        ("name=123", "name is 123: Input should be a valid string; put it in its own quotes"),
        ("name=run #2", "what follows # is a comment; put a text with special characters in its"),
        ("data.valid=#2.jsonl", "override 'data.valid=#2.jsonl': what follows # is a comment;"),
        ("optim.muon_lr=.inf", "key optim.muon_lr is inf: Input should be a finite number"),
        ("optim.muon_lr=1e400", "key optim.muon_lr is '1e400': Input should be a finite number"),
        ("data.sources=[{path: a, weight: .inf}]", "weight is inf: Input should be a finite"),
        (f"optim.steps={10**30}", "a number beyond 9223372036854775807"),
        (f"seed={10**400}", "a number of 401 digits is too large"),
        (f"seed={'9' * 5000}", "a number of 5000 digits is too large"),
        ("optim.steps=010", "the number 010 is not decimal"),
        ("data=&a {<<: *a}", "an alias (*) contains itself"),
        ("data={train: a, train: b}", "key train is already on line 1"),
        ("optim.steps=[1", "override 'optim.steps=[1': not YAML: "),
    ],
)
def test_the_error_for_a_bad_override_names_it(recipe, override, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["name"], "key name is missing"),
        (["optim", "steps"], "key optim.steps is missing"),
        (["model", "hidden_size"], "key model.hidden_size is missing"),
        (["model"], "key model is missing: give a shape, or a model folder as init"),
    ],
)
def test_the_error_for_a_missing_key_names_it(tmp_path, missing, message):
    tree = yaml.safe_load(yaml.safe_dump(TREE))
    node = tree
    for key in missing[:-1]:
        node = node[key]
    del node[missing[-1]]
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match=f"recipe.yaml(:[0-9]+)?: {message}"):
        load_recipe(file)


def test_a_mistyped_key_is_reported_before_the_missing_one(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**TREE, "optim": {"stesp": 7}}))
    with pytest.raises(RecipeError, match=r"unknown key optim\.stesp; valid here: steps, "):
        load_recipe(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a recipe is a mapping with name, seed, init_from, data, model, optim, tr"),
        (b"- a\n- b\n", "a recipe is a mapping"),
        (b"a: [1\n", "not YAML"),
        (b"name: caf\xe9\n", "not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path, content, message):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}:")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


LINES = """\
name: test
data:
  train: {train}
  valid: {valid}
model:
  hidden_size: 32
  intermediate_size: 64
  num_hidden_layers: 1
  num_attention_heads: 2
  num_key_value_heads: 1
optim:
  steps: 7
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("steps: 7", "steps: 7\n  stesp: 7", ":13: unknown key optim.stesp; valid here: steps,"),
        ("steps: 7", "steps: seven", ":12: key optim.steps is 'seven': "),
        ("steps: 7", "clip: 1", ":11: key optim.steps is missing"),
        ("hidden_size: 32", "hidden_size: 33", ":5: key model: hidden_size 33 is not"),
        ("name: test", "nam: test", ":1: unknown key nam; valid here: name,"),
        ("hidden_size: 32", "hidden_size: [32", ":7: not YAML: "),
        ("steps: 7", "steps: 7\n  steps: 8", ":13: key steps is already on line 12"),
        (
            "train: {train}",
            "sources: [{path: a},\n    {path: b, wieght: 2}]",
            ":4: unknown key data.sources.1.wieght; valid here: path, weight",
        ),
        ("{train}", "nowhere.jsonl", ":3: key data.train is 'nowhere.jsonl': no such file"),
        ("{valid}", "nowhere.jsonl", ":4: key data.valid is 'nowhere.jsonl': no such file"),
        ("name: test", "name: test\ninit_from: none", ":2: key init_from is 'none': no such file"),
    ],
)
def test_the_error_names_the_line(tmp_path, old, new, place):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}")
    file = tmp_path / "recipe.yaml"
    text = LINES.replace(old, new).replace("{train}", str(pairs)).replace("{valid}", str(pairs))
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, files=True)
    assert str(caught.value).startswith(f"{file}{place}")
    assert "\n" not in str(caught.value)


def test_the_error_for_an_override_points_to_the_override(recipe):
    with pytest.raises(RecipeError, match=r"^override 'optim\.steps=0': key optim\.steps is 0: "):
        load_recipe(recipe, ["optim.steps=0"])
    with pytest.raises(RecipeError, match=r"Input should be a valid string$"):  # quotes do not help
        load_recipe(recipe, ["name=[a, b]"])
    with pytest.raises(RecipeError, match=r"^override 'data\.train=no\.jsonl': key data\.train "):
        load_recipe(recipe, ["data.train=no.jsonl"], files=True)


def test_files_are_checked_only_on_request(recipe):
    named = ["data={sources: [{path: a}], valid: b, tokenizer: c}", "init_from=runs/{direction}"]
    assert load_recipe(recipe, named).data.valid == "b"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: no such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="this is a directory"):
        load_recipe(tmp_path)


def test_a_recipe_is_immutable(recipe):
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(recipe).optim.steps = 3


def test_a_contrast_requires_wrong_solutions(recipe):
    with pytest.raises(RecipeError, match="a file as objective.negatives"):
        load_recipe(recipe, ["data.train=pairs.jsonl", "objective.contrastive=1"])


def test_an_initial_model_provides_shape_and_tokenizer(recipe):
    started = load_recipe(recipe, ["init_from=runs/a/{direction}/model", "model=null"])
    assert started.data_of(Direction.REVERSE).tokenizer == "runs/a/reverse/model/tokenizer.json"
    given = load_recipe(recipe, ["init_from=runs/a", "data.tokenizer=mine.json"])
    assert given.data_of(Direction.REVERSE).tokenizer == "mine.json"


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_saved_recipe_loads_as_the_same(tmp_path, path):
    recipe = load_recipe(path)
    save_recipe(recipe, tmp_path / "run" / "recipe.yaml")
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe


def test_a_saved_recipe_of_token_stores_trains_again(recipe, tmp_path):
    """`data.train` next to `data.sources` is refused, so its default must not be written."""
    tokenizer = train_tokenizer(["one two"], 257)
    tokenizer.save(tmp_path / "store")
    write_store(tmp_path / "store", ["one two"], tokenizer)
    sources = f"data={{sources: [{{path: {tmp_path}/store}}], valid: {tmp_path}/store}}"
    stored = load_recipe(recipe, [sources])
    save_recipe(stored, tmp_path / "again.yaml")
    again = load_recipe(tmp_path / "again.yaml")
    assert again == stored
    prepared = prepare_data(again.data, tmp_path / "data")
    assert prepared.sources[0].store.manifest.num_documents == 1


def test_an_impossible_path_counts_as_missing(recipe):
    for path in ("x" * 5000, '"a\\0b"'):
        with pytest.raises(RecipeError, match="key data.train is .*: no such file"):
            load_recipe(recipe, [f"data.train={path}"], files=True)


def test_only_the_direction_is_filled_in(recipe):
    started = load_recipe(recipe, ["init_from='runs/{0}{x}/{direction}'"])
    assert started.init_folder(Direction.REVERSE) == "runs/{0}{x}/reverse"


def test_an_initial_model_may_be_in_the_hubs_cache(recipe, tmp_path):
    repo = tmp_path / "models--me--twin"
    commit = repo / "snapshots" / "c0ffee"
    commit.mkdir(parents=True)
    started = load_recipe(recipe, [f"init_from={repo}"])
    assert started.init_folder(Direction.REVERSE) == str(commit)
    assert started.data_of(Direction.REVERSE).tokenizer == str(commit / "tokenizer.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cause", "unused", "reason"),
    [
        (["optim.matrix_optimizer=adamw"], "optim.muon_lr=0.5", "optim.matrix_optimizer is adamw"),
        (["optim.schedule=cosine"], "optim.decay_steps=3", "optim.schedule is cosine"),
        (["optim.decay_steps=0"], "optim.min_lr_ratio=0.1", "optim.decay_steps is 0"),
        ([], "data.mask_across_documents=false", "each window holds one document"),
        ([], "data.reset_position_ids=false", "each window holds one document"),
        (
            ["init_from=m", "lora={}"],
            "optim.muon_lr=0.5",
            "lora trains only adapters, by AdamW without decay",
        ),
        (
            ["init_from=m", "lora={}"],
            "optim.weight_decay=0.1",
            "lora trains only adapters, by AdamW without decay",
        ),
        (["init_from=m"], "model.initializer_range=0.1", "init_from brings its weights"),
        ([], "objective.negatives=w.jsonl", "objective.contrastive is 0"),
        ([], "objective.all_tokens=2", "it is the only term"),
        ([], "data.valid=v.jsonl", "data.train is gsm_symbolic, which has a valid split"),
        (["data.train=a.jsonl"], "data.equation_only_fraction=0.5", "it is for gsm_symbolic alone"),
        (["data.train=a.jsonl"], "data.seed=3", "it is for gsm_symbolic alone"),
        (["data.tokenizer=t"], "data.vocab_size=300", "the tokenizer already exists"),
        (["data={sources: [{path: a}]}"], "data.num_valid=3", "data.sources are read whole"),
    ],
)
def test_a_key_without_effect_is_refused_as_override_or_noted_in_a_file(
    tmp_path, recipe, cause, unused, reason
):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [*cause, unused])
    key = unused.partition("=")[0]
    assert str(caught.value).startswith(f"override {unused!r}: {key} has no effect: ")
    assert str(caught.value).endswith(f"{reason}; leave it out")
    file = tmp_path / "whole.yaml"
    _, name = key.split(".")
    tree = yaml.safe_load(yaml.safe_dump(TREE))
    for setting in (*cause, unused):
        place, _, value = setting.partition("=")
        *parents, last = place.split(".")
        (tree.setdefault(parents[0], {}) if parents else tree)[last] = yaml.safe_load(value)
    file.write_text(yaml.safe_dump(tree))
    notes = []
    load_recipe(file, note=notes.append)
    lines = file.read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if text.strip().startswith(f"{name}:"))
    assert f"{file}:{line}: {key} has no effect: " in " ".join(notes)


def test_defaults_and_shipped_recipes_are_never_noted(tmp_path, recipe):
    for path in (recipe, *RECIPES):
        notes = []
        load_recipe(path, ["optim.warmup_steps=1"], note=notes.append)
        assert notes == []


def test_rates_that_never_reach_their_peak_are_noted(recipe):
    """If a recipe is tried for a few steps, warm-up and decay are still those of the whole run."""
    notes = []
    long = ["optim.warmup_steps=80", "optim.decay_steps=1600"]
    load_recipe(recipe, ["optim.steps=1680", *long], note=notes.append)
    assert notes == []
    load_recipe(recipe, ["optim.steps=100", *long], note=notes.append)
    (line,) = notes
    assert line.startswith("override 'optim.steps=100': optim.steps is 100, fewer than the steps")


def test_a_cosine_schedule_has_a_minimum_rate_without_decay_steps(recipe):
    overrides = ["optim.schedule=cosine", "optim.min_lr_ratio=0.2"]
    assert load_recipe(recipe, overrides).optim.min_lr_ratio == 0.2
