"""Recipes: every entry holds known options, and what stands beside a recipe goes before it."""

import pytest

from diffusion.gaussian import GaussianOptions
from scripts.composition.flag_checks import check_flags
from scripts.composition.options import Options
from scripts.composition.recipes import RECIPES
from scripts.job.errors import UsageError
from train_text_diffusion import main


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("form", ["--recipe={}", "--recipe {}"])
def test_a_recipe_is_its_options(name, form):
    options = Options.from_argv(["--dataset_name", "demo", *form.format(name).split()])
    check_flags(options)
    flat = options.flat()
    assert flat["recipe"] == name
    assert {flag: flat[flag] for flag in RECIPES[name]} == RECIPES[name]


def test_a_flag_that_is_given_goes_before_wherever_it_stands():
    for argv in ("--tan_d 3 --recipe frontier --scale_shift false", "--recipe frontier --tan_d 3 --scale_shift=false"):
        options = Options.from_argv(argv.split())
        assert (options.gaussian.tan_d, options.denoiser.scale_shift) == (3.0, False)
        assert options.denoiser.bottleneck_dim == RECIPES["frontier"]["bottleneck_dim"]


def test_the_recipes_differ_and_none_says_how_large_a_model_is():
    assert RECIPES["reference"] != RECIPES["frontier"]
    for recipe in RECIPES.values():
        assert not {"tx_dim", "tx_depth", "num_train_steps", "train_batch_size", "timesteps"} & recipe.keys()
        GaussianOptions(**{key: value for key, value in recipe.items() if hasattr(GaussianOptions(), key)})


def test_a_part_of_a_recipe_is_left_out_with_what_belongs_to_it():
    options = Options.from_argv("--recipe frontier --self_condition false --no_normalize_latent".split())
    check_flags(options)  # though the recipe's --self_condition_prob and --latent_scale have no effect then
    assert not options.denoiser.self_condition


@pytest.mark.parametrize(
    ("line", "wanted"),
    {
        "--recipe best": "--recipe 'best' is not one of: reference, frontier",
        "--recipe": "expected one argument",
        "--recipe frontier --method mdlm": "--recipe frontier is of --method latent; the method is mdlm",
    }.items(),
)
def test_a_recipe_that_is_none_is_refused(complaint, line, wanted):
    assert wanted in complaint(main, f"--dataset_name demo {line}")


def test_a_run_remembers_its_recipe_and_is_not_given_another(small_run):
    run_dir = small_run("latent", "--recipe frontier --bottleneck_dim 16 --sampling_timesteps 3 --grid_power 1")
    options = Options.from_argv(["--gen_data", "--resume_dir", str(run_dir)])
    assert (options.method.recipe, options.denoiser.bottleneck_dim) == ("frontier", 16)
    assert options.sampling.sampler == "ancestral"
    with pytest.raises(UsageError, match="which is fixed"):
        Options.from_argv(["--resume_training", "--recipe", "reference", "--resume_dir", str(run_dir)])
