"""The recipe: what it refuses and in which words, overrides, variables, explain and the fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import fingerprint
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.read import explain, load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.recipe.section import Section
from vcc_fm.recipe.split import SplitConfig

SIMULATED = """
name: demo
data:
  simulate: {genes: 300}
split: {hold_out: perturbations}
train: {steps: 100}
"""

FILES = """
name: files
data:
  sources:
    - {name: one, path: "${VCC_FM_DATA}/one.h5ad", perturbation_column: gene, context: K562}
    - {name: two, path: two.h5ad, perturbation_column: gene, context_column: cell_type}
split: {hold_out: contexts, contexts: [K562]}
train: {steps: 100}
"""


@pytest.fixture
def load(tmp_path: Path):
    """Write a recipe and load it with overrides."""

    def write_and_load(text: str, *overrides: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return load_recipe(path, list(overrides))

    return write_and_load


def test_defaults_are_filled_in_and_folders_follow_the_name(load):
    recipe = load(SIMULATED + "output: /tmp/out\n")
    assert recipe.data.simulate is not None
    assert recipe.data.simulate.genes == 300
    assert recipe.decoder.base == "scratch"
    assert recipe.embeddings_folder == Path("/tmp/out/embeddings/demo")
    assert recipe.run_folder == Path("/tmp/out/runs/demo")


def test_a_loaded_recipe_cannot_be_changed(load):
    with pytest.raises(ValidationError, match="frozen"):
        load(SIMULATED).train.lr = 1.0


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SIMULATED + "sead: 3", r"unknown key sead \(did you mean seed\?\)"),
        (SIMULATED.replace("steps", "stepz"), r"unknown key train\.stepz \(did you mean steps\?\)"),
        (FILES.replace("path: two", "pth: two"), r"unknown key data\.sources\.1\.pth \(did you mean path\?\)"),
        (SIMULATED + "decoder: {lora: {zzz: 1}}", r"unknown key decoder\.lora\.zzz \(known keys: r, alpha, dropout"),
        (SIMULATED + "pretrain: {step: 1}", r"unknown key pretrain\.step \(did you mean steps\?\)"),
        (SIMULATED.replace("train: {steps: 100}", ""), "train is missing"),
        (SIMULATED.replace("100", "'100'"), r"train\.steps: input should be a valid integer, found '100'"),
        (SIMULATED.replace("100", "1.5"), r"train\.steps: input should be a valid integer, found 1\.5"),
        (SIMULATED.replace("100", "0"), r"train\.steps: input should be greater than 0, found 0"),
        (SIMULATED.replace("steps", "lr: fast, steps"), r"train\.lr: input should be a valid number, found 'fast'"),
        (SIMULATED.replace("demo", "a/b"), "name: string should match pattern"),
        (SIMULATED.replace("perturbations", "genes"), r"split\.hold_out: input should be 'perturbations'"),
        (SIMULATED.replace("perturbations", "contexts"), r"split\.hold_out=contexts needs split\.contexts"),
        (SIMULATED.replace("perturbations", "table"), r"split\.hold_out=table needs split\.table"),
        (FILES.replace("[K562]", "[K562], folds: 3"), r"split\.folds=3 is more than the 1 of split\.contexts"),
        (FILES.replace("[K562]", "[K562, K562]"), r"contexts: 'K562' stands twice"),
        (
            FILES.replace("hold_out: contexts", "hold_out: few-shot, folds: 3"),
            r"split\.folds=3 needs split\.hold_out=perturbations or contexts, found few-shot",
        ),
        (FILES.replace("[K562]", "[K562], unseen: 0.5"), r"split\.unseen=0\.5 needs split\.hold_out=few-shot"),
        (SIMULATED.replace("100", "100, batch_sets: 8, micro_sets: 3"), "8 is not a multiple of train.micro_sets=3"),
        (SIMULATED + "decoder: {base: pretrain}", r"decoder\.base=pretrain and a pretrain section belong together"),
        (
            SIMULATED.replace("simulate: {genes: 300}", "minimum_cells: 3"),
            "give one of simulate, sources and store; found none",
        ),
        (FILES.replace("name: two", "name: one"), r"data\.sources: names must differ, found \['one', 'one'\]"),
        (FILES.replace("context: K562", "batch_column: lane"), "source 'one': give either context_column or context"),
        (FILES.replace("gene,", "gene, quality: {guides: [1, 2]},"), r"guides=\[1, 2\] needs quality\.guides_column"),
        ("- name", "a recipe is a mapping of keys to values, found list"),
        ("", "a recipe is a mapping of keys to values, found NoneType"),
        ("name: a: b", "not readable as YAML"),
        ("x: !!python/object/apply:os.getcwd []", "not readable as YAML"),
    ],
)
def test_refusals(load, text, message):
    with pytest.raises(UserError, match=message):
        load(text)


def test_every_refusal_names_the_file_and_all_faults_at_once(load):
    with pytest.raises(UserError, match=r"recipe\.yaml: .*train\.steps.*; unknown key sead"):
        load(SIMULATED.replace("100", "0") + "sead: 3")


def test_a_merge_key_brings_what_does_not_stand_there(load):
    text = SIMULATED.replace("{steps: 100}", "&t {steps: 100, lr: 0.5}")
    recipe = load(text + "decoder: {base: pretrain}\npretrain: {<<: *t, steps: 7}\n")
    assert (recipe.pretrain.steps, recipe.pretrain.lr, recipe.train.steps) == (7, 0.5, 100)


@pytest.mark.parametrize("text", [SIMULATED + "name: again", SIMULATED.replace("100", "100, steps: 200")])
def test_a_key_that_repeats_is_refused_with_its_line(load, text):
    with pytest.raises(UserError, match=r"line \d: key '(name|steps)' repeats"):
        load(text)


def test_a_recipe_that_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"h2\.yaml: no such recipe"):
        load_recipe(tmp_path / "h2.yaml")
    with pytest.raises(UserError, match="is a folder; give a recipe"):
        load_recipe(tmp_path)


# ----------------------------------------------------------------------------------------------------------- overrides
def test_overrides_reach_sections_lists_and_absent_parents(load):
    recipe = load(
        FILES,
        "train.lr=1e-4",
        "data.sources.1.path=three.h5ad",
        "decoder.lora.r=4",
        "split.contexts=[K562, H1]",
        "train.contexts=null",
        "name=other",
    )
    assert recipe.train.lr == 1e-4
    assert [source.path for source in recipe.data.sources] == ["${VCC_FM_DATA}/one.h5ad", "three.h5ad"]
    assert recipe.decoder.lora.r == 4
    assert recipe.split.contexts == ["K562", "H1"]
    assert recipe.train.contexts is None
    assert recipe.name == "other"


@pytest.mark.parametrize(
    ("number", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("5.e-3", 5e-3), (".5", 0.5), ("2", 2.0), ("1_0e0", 10.0)]
)
def test_numbers_as_people_write_them(load, number, value):
    assert load(SIMULATED, f"train.lr={number}").train.lr == value
    assert load(SIMULATED.replace("100", f"100, lr: {number}")).train.lr == value


def test_a_whole_number_and_a_fraction_of_test_perturbations_stay_apart(load):
    one, all_of_them = load(SIMULATED, "split.test=1").split.test, load(SIMULATED, "split.test=1.0").split.test
    assert (type(one), type(all_of_them)) == (int, float)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "override 'train.lr': write key=value, for example train.lr=1e-4"),
        ("train.lrr=1", r"unknown key train\.lrr \(did you mean lr\?\)"),
        ("trian.lr=1", r"unknown key trian \(did you mean train\?\)"),
        ("---\n---\ntrain.lr=1", r"unknown key .---.n---.ntrain. \(known keys"),
        ("data.sources.2.path=x", "override data.sources.2.path: '2' is no position in a list of 2"),
        ("data.sources.one.path=x", "'one' is no position in a list of 2"),
        ("data.sources.2=x", "'2' is no position in a list of 2"),
        ("train.steps.more=1", "override 'train.steps.more=1': train.steps holds a value, not keys"),
        ("train.steps=many", r"train\.steps: input should be a valid integer, found 'many'"),
    ],
)
def test_override_refusals(load, override, message):
    with pytest.raises(UserError, match=message):
        load(FILES, override)


# ----------------------------------------------------------------------------------------------------------- variables
def test_variables_are_expanded_late_and_must_be_set(load, monkeypatch):
    monkeypatch.delenv("VCC_FM_DATA", raising=False)
    path = load(FILES).data.sources[0].path
    with pytest.raises(UserError, match=r"one\.h5ad: the environment variable VCC_FM_DATA is not set"):
        expand(path)
    monkeypatch.setenv("VCC_FM_DATA", "/data")
    assert expand(path) == Path("/data/one.h5ad")
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("~/x.h5ad") == Path("/home/me/x.h5ad")


def test_every_path_is_expanded_the_output_too(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert load(SIMULATED, "output=~/x").run_folder == Path("/home/me/x/runs/demo")
    monkeypatch.setenv("SCRATCH_DISK", "/scratch")
    assert load(SIMULATED, "output=${SCRATCH_DISK}/x").embeddings_folder == Path("/scratch/x/embeddings/demo")
    assert expand("$SCRATCH_DISK/x") == Path("/scratch/x")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("$NO_SUCH_DISK/x", "the environment variable NO_SUCH_DISK is not set"),
        ("${NO-SUCH}/x", "the environment variable NO-SUCH is not set"),
        ("~no-such-user/x", "there is no home folder of that user"),
        ("a/" + "n" * 256, "no file can have that name"),
        ("a\0b", "no file can have that name"),
    ],
)
def test_a_path_that_no_file_can_have(path, message):
    with pytest.raises(UserError, match=message) as caught:
        expand(path)
    assert len(str(caught.value)) < 300


def test_a_name_leaves_room_for_the_files_beside_its_folders(load):
    assert load(SIMULATED.replace("demo", "n" * 200)).name == "n" * 200
    with pytest.raises(UserError, match=r"name: 'nnn.*has 201 bytes; 200 at most"):
        load(SIMULATED.replace("demo", "n" * 201))


def test_what_is_stored_of_a_recipe_holds_no_secret(load, monkeypatch):
    monkeypatch.setenv("VCC_FM_DATA", "/secret")
    fasta = "embed.proteins.fasta=https://me:SECRET@proteins.example/p.fa?token=SECRET#SECRET"
    get = "data.sources.0.get=ask at https://data.example/one?key=SECRET, or us"
    recipe = load(FILES, fasta, get)
    said = recipe.public()
    assert said["embed"]["proteins"]["fasta"] == "https://proteins.example/p.fa"
    assert said["data"]["sources"][0]["get"] == "ask at https://data.example/one or us"
    assert said["data"]["sources"][0]["path"] == "${VCC_FM_DATA}/one.h5ad"
    assert "SECRET" not in str(said)
    assert "secret" not in str(said)
    assert recipe.embed.proteins.fasta == fasta.partition("=")[2]
    assert load(SIMULATED).public() == load(SIMULATED).model_dump(mode="json")


# ------------------------------------------------------------------------------------------------ explain, fingerprint
def leaves(value: object, prefix: str = "") -> set[str]:
    """Dotted keys of a recipe, sections and lists of sections descended into, mappings of free keys not."""
    if isinstance(value, Section):
        return {key for name in type(value).model_fields for key in leaves(getattr(value, name), f"{prefix}.{name}")}
    if isinstance(value, list) and value and isinstance(value[0], Section):
        return leaves(value[0], prefix + ".0")
    return {prefix.lstrip(".")}


def test_explain_covers_every_key_with_a_description(load):
    full = leaves(load(SIMULATED, "decoder.base=pretrain", "pretrain.steps=5", "hub.repo=ORG/NAME"))
    knock_down = "data.sources.0.quality.knock_down={}"
    full |= leaves(load(FILES, "embed.proteins.encoder=esm2", "embed.proteins.untrained={}", knock_down))
    full |= leaves(
        load(FILES, "embed.proteins={encoder: table, table: t.pt}", "embed.cells.encoder=state-se", knock_down)
    )
    stored = [f"embed.{kind}={{encoder: store, store: x}}" for kind in ("cells", "proteins")]
    full |= leaves(load(FILES, *stored, knock_down))
    # Null or empty in one of the two.
    full -= {"data.simulate", "data.sources", "pretrain", "hub", "embed.proteins.untrained"}
    rows = list(explain(Recipe))
    keys = [key for key, _, _ in rows]
    assert len(keys) == len(set(keys))
    assert full <= set(keys)
    assert {key for key, default, _ in rows if default} == full
    assert all(len(description) > 8 for _, _, description in rows)


def test_a_tracker_that_is_not_installed_is_refused_by_plan_and_training(load, monkeypatch):
    train = load(SIMULATED + "").train.model_copy(update={"tracker": "trackio"})
    monkeypatch.setattr("vcc_fm.recipe.train.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.tracker=trackio is not installed: pip install trackio"):
        train.check_tracker("train")
    train.model_copy(update={"tracker": "none"}).check_tracker("train")
    monkeypatch.setattr("vcc_fm.recipe.train.find_spec", lambda name: name)
    train.check_tracker("train")


def test_explain_shows_defaults_as_json_and_marks_what_is_required():
    defaults = {key: default for key, default, _ in explain(Recipe)}
    assert defaults["train.steps"] == "required"
    assert defaults["train.lr"] == "0.001"
    assert defaults["pretrain.contexts"] == "null"
    assert defaults["data.sources.0.symbols"] == '"index"'


def test_fingerprint_does_not_depend_on_key_order_and_does_on_values(load):
    shuffled = "\n".join(
        ["train: {steps: 100}", "split: {hold_out: perturbations}", "data: {simulate: {genes: 300}}", "name: demo"]
    )
    recipe = load(SIMULATED)
    assert recipe.fingerprint() == load(shuffled).fingerprint()
    # What is written out equals what is filled in.
    assert recipe.fingerprint() == load(SIMULATED, "seed=0", "train.lr=1e-3").fingerprint()
    assert recipe.fingerprint() != load(SIMULATED, "seed=1").fingerprint()
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})
    assert len(fingerprint(None)) == 64


def test_a_section_can_be_built_in_code():
    assert SplitConfig(hold_out="few-shot", contexts=["H1"]).validation == 0.15


@pytest.mark.parametrize("name", ["..", "../elsewhere", "/tmp", ".hidden", "-rf", ""])
def test_a_name_cannot_leave_its_folder(tmp_path, name):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: {name!r}\ndata: {{simulate: {{}}}}\nsplit: {{hold_out: perturbations}}\ntrain: {{steps: 1}}\n"
    )
    with pytest.raises(UserError, match="name: string should match pattern"):
        load_recipe(path)


def test_an_untrained_esm2_has_a_shape_that_can_be_built(load):
    with pytest.raises(UserError, match=r"untrained: width=20 is not a multiple of 2 x heads=4"):
        load(SIMULATED, "embed.proteins={encoder: esm2, untrained: {width: 20, heads: 4}}")
    with pytest.raises(UserError, match=r"unknown key embed.proteins.untrained \(a key of encoder: esm2\)"):
        load(SIMULATED, "embed.proteins.untrained={}")


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("train.clip=.inf", r"train.clip.*finite"),
        ("train.lr=.nan", r"train.lr.*finite"),
        ("predict.effect_scale=.nan", r"effect_scale"),
        ("predict.effect_scale=-1.0", r"effect_scale"),
        ("predict.effect_scale=1e9", r"effect_scale"),
        ("predict.depth=-5.0", r"depth"),
        ("predict.depth=1e15", r"depth"),
        ("predict.depth=.inf", r"depth"),
        ("train.context_weights={K: .inf}", r"finite"),
        ("train.loss={delta: .inf}", r"finite"),
        ("score.members=[MSE]", r"score.members=.MSE.*vcc2026 has no such metric.*pds_cosine"),
        ("score.baselines=[]", r"score.baselines.*at least 1"),
        ("score.baselines=[control, control]", r"baselines: 'control' stands twice"),
        ("train.contexts=[]", r"train.contexts.*at least 1"),
        ("split.contexts=[a, b, a]", r"contexts: 'a' stands twice"),
    ],
)
def test_numbers_have_ranges_and_lists_no_repeats(load, override, refusal):
    with pytest.raises(UserError, match=refusal):
        load(SIMULATED, override)


def test_no_limit_on_the_gradient_is_null(load):
    assert load(SIMULATED, "train.clip=null").train.clip is None
