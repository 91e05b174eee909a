//! Options of `prune` that were given and that nothing in the run reads.

use std::collections::BTreeSet;

use super::method::Method;
use super::spec::{RunSpec, Stages};
use crate::kernel::Drawn;
use crate::prune::learn::{Objective, Stage, Trains};
use crate::prune::{OneShot, OneShotOptions, Repair};

/// Who reads options in a run.
pub(super) struct Readers<'a> {
    pub(super) method: Method,
    /// The stages of the run, that in the walk included.
    pub(super) stages: Vec<&'a Stage>,
    /// The walk over the blocks.
    pub(super) walk: Option<&'a OneShotOptions>,
    /// Whether MaskPro learns on the model's loss.
    pub(super) policy: bool,
    /// Whether a calibration text is read.
    pub(super) calib: bool,
    /// Whether anything is measured at the end.
    pub(super) eval: bool,
}

impl<'a> Readers<'a> {
    /// Of a run; `calib`: whether a text is read.
    pub(super) fn of(
        spec: &RunSpec,
        stages: &'a Stages,
        walk: Option<&'a OneShotOptions>,
        calib: bool,
    ) -> Self {
        let (method, policy, eval) = (spec.method(), spec.policy(), spec.eval.is_some());
        Self { method, stages: stages.all().collect(), walk, policy, calib, eval }
    }

    fn any(&self, reads: impl Fn(&Stage) -> bool) -> bool {
        self.stages.iter().any(|stage| reads(stage))
    }

    fn trains(&self, which: &[Trains]) -> bool {
        self.any(|stage| which.contains(&stage.trains))
    }

    fn walks(&self, method: OneShot) -> bool {
        self.walk.is_some_and(|walk| walk.method == method)
    }

    /// Whether an option is read, and what reads it; none for an option that is not known here.
    fn reads(&self, option: &str) -> Option<(bool, &'static str)> {
        let relaxed = self.trains(&[Trains::Relaxed, Trains::Joint]);
        let maskllm = self.trains(&[Trains::MaskLlm]);
        let weights = self.any(|stage| stage.trains.weights());
        let repairs = self.trains(&[Trains::Weights]);
        let learns = self.policy || self.any(|stage| stage.trains.masks());
        let logits = self.policy || self.any(|stage| stage.trains.masks() && stage.trains.logits());
        let on_model = |stage: &Stage| stage.objective == Objective::Model;
        let in_layer = |stage: &Stage| stage.objective == Objective::Layer;
        let policy = self.policy || self.any(|stage| stage.trains == Trains::MaskPro && !in_layer(stage));
        let drawn = |stage: &Stage| stage.trains == Trains::MaskPro && stage.pattern.m() > Drawn::EXACT;
        // The layer objective is part of the walk.
        let staged = self.any(|stage| !in_layer(stage));
        let polish = self.any(|stage| stage.polish);
        // With a text also methods that need none tell the errors of outputs.
        let inputs = self.calib && self.walk.is_some();
        let starts = learns || matches!(self.method, Method::Descent | Method::Given);
        Some(match option {
            "calib" | "windows" | "window" | "segments" | "seed" | "field" | "column" => {
                (self.calib, "--calib and methods that look at a text")
            }
            "eval-window" | "eval-windows" => (self.eval, "--eval"),
            "start" => (starts, "descent, given and methods that learn"),
            "start-windows" => (learns && inputs, "start masks that look at a text, of methods that learn"),
            "inputs" => (inputs, "methods that go layer by layer and look at a text"),
            "activations" => (inputs || !self.stages.is_empty(), "methods that look at a text"),
            "repair-damp" => (self.walk.is_some_and(|w| w.repair == Repair::Lstsq), "--repair lstsq"),
            "clamp-weights" => {
                (weights || self.walk.is_some_and(|w| w.repair != Repair::None), "--repair and --joint")
            }
            "damp" => (self.walks(OneShot::SparseGpt), "sparsegpt"),
            "tolerance" | "max-sweeps" => (self.walks(OneShot::Descent) || polish, "descent and --polish"),
            "polish" => (polish, "--objective layer"),
            "estimator" => (self.policy, "maskpro on the model's loss"),
            "steps" | "rate" => (learns, "methods that learn"),
            "logits" => (logits, "methods that learn logits"),
            "batch" => (
                self.policy || staged,
                "methods that learn, but for the layer objective, and repairs that train",
            ),
            "alpha" => (policy, "maskpro on the loss of a block or the model"),
            "draws" => {
                (self.any(|s| in_layer(s) && drawn(s)), "maskpro on the layer objective where M is 16")
            }
            "temperature" | "noise" => (relaxed || maskllm, "relaxed and maskllm"),
            "relaxation" | "state" => (relaxed, "relaxed"),
            "kappa" | "prior" | "regulariser" => (maskllm, "maskllm"),
            "lambda" => (self.trains(&[Trains::ProxSparse]), "proxsparse"),
            "loss" => (
                self.any(|stage| on_model(stage) && stage.trains.masks()),
                "masks learned with --objective model",
            ),
            "token-weights" => (
                self.any(|stage| stage.objective == Objective::Block),
                "--objective block and --repair block",
            ),
            "blocks" => (self.any(on_model), "--objective model and --repair model"),
            "warm-up" => (
                weights || self.trains(&[Trains::ProxSparse]),
                "--joint, --repair block and model, and proxsparse",
            ),
            "repair-steps" | "repair-rate" => (repairs, "--repair block and model"),
            "keep-every" => {
                (staged, "methods that learn, but for the layer objective, and repairs that train")
            }
            _ => return None,
        })
    }

    /// Those of the options `given` that nothing reads, each with what does.
    pub(super) fn unused<'o>(&self, given: &'o BTreeSet<String>) -> Vec<(&'o str, &'static str)> {
        let unread = |option: &'o String| match self.reads(option) {
            Some((false, what)) => Some((option.as_str(), what)),
            _ => None,
        };
        given.iter().filter_map(unread).collect()
    }
}

/// Who reads an option of `prune`, for those that not every run reads.
#[cfg(test)]
pub(crate) fn readers() -> std::collections::BTreeMap<String, &'static str> {
    let none = Readers {
        method: Method::Magnitude,
        stages: Vec::new(),
        walk: None,
        policy: false,
        calib: false,
        eval: false,
    };
    let command = super::toml::described();
    let keys = command.get_arguments().map(super::toml::key);
    keys.filter_map(|key| none.reads(&key).map(|(_, what)| (key, what))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::Pattern;
    use crate::model::Architecture;

    /// Options that every run reads, or refuses by themselves where they do not belong.
    const ALWAYS: &[&str] = &[
        "model",
        "out",
        "resume",
        "config",
        "no-model",
        "no-report",
        "help",
        "version",
        "method",
        "recipe",
        "pattern",
        "permute",
        "only",
        "skip-indivisible",
        "repair",
        "gpu-memory",
        "host-memory",
        "eval",
        "objective",
        "joint",
        "weight-rate",
        "sharpness",
    ];

    /// No option is silent: each is read always, or here is who reads it, and each of those has a run that does and one that does not.
    #[test]
    fn every_option_has_readers() {
        let command = crate::run::toml::described();
        let stages: Vec<Stage> =
            [Trains::Relaxed, Trains::MaskPro, Trains::MaskLlm, Trains::ProxSparse, Trains::Weights]
                .into_iter()
                .flat_map(|trains| {
                    [Objective::Block, Objective::Model].map(|o| Stage::new(Pattern::TWO_OF_FOUR, trains, o))
                })
                .collect();
        let wide = Pattern::new(8, 16).expect("a pattern");
        let layer = Stage { polish: true, ..Stage::new(wide, Trains::MaskPro, Objective::Layer) };
        let all: Vec<&Stage> = stages.iter().chain([&layer]).collect();
        let walk =
            |method, repair| OneShotOptions { repair, ..OneShotOptions::new(Pattern::TWO_OF_FOUR, method) };
        let walks = [walk(OneShot::Descent, Repair::Lstsq), walk(OneShot::SparseGpt, Repair::None)];
        let run =
            |method, stages, walk, policy, on| Readers { method, stages, walk, policy, calib: on, eval: on };
        let none: Vec<&Stage> = Vec::new();
        let runs = [
            run(Method::Magnitude, none.clone(), None, false, false),
            run(Method::Maskpro, none, Some(&walks[0]), true, true),
            run(Method::Relaxed, all, Some(&walks[1]), false, true),
        ];
        for arg in command.get_arguments().filter(|arg| !arg.is_global_set()) {
            let key = crate::run::toml::key(arg);
            let known: Vec<bool> =
                runs.iter().filter_map(|run| run.reads(&key)).map(|(read, _)| read).collect();
            if ALWAYS.contains(&key.as_str()) {
                assert!(known.is_empty(), "{key} is in both lists");
            } else {
                assert!(known.contains(&true) && known.contains(&false), "{key}: read in {known:?}");
            }
        }
    }

    /// Of every method and recipe, every option does something, is refused, or is named in a warning.
    #[test]
    fn no_option_of_any_method_is_silent() {
        use clap::ValueEnum;
        use serde_json::{Value, json};

        use crate::run::method::Recipe;
        use crate::run::toml::tests::another;

        /// What says where things are, what is shown, and how much may be used; not what the mask depends on.
        const BESIDE: &[&str] = &[
            "calib",
            "eval",
            "eval-window",
            "eval-windows",
            "only",
            "skip-indivisible",
            "no-model",
            "no-report",
            "out",
            "resume",
            "config",
            "gpu-memory",
            "host-memory",
            "activations",
            "blocks",
            "keep-every",
            "start-windows",
            "field",
            "column",
            "permute",
            "model",
        ];
        let architecture = Architecture::read(std::path::Path::new("models/village")).expect("a model");
        // All that a run computes by, or why it is refused.
        let resolved = |spec: &RunSpec| -> Result<Value, String> {
            let stages = spec.stages().map_err(|e| e.to_string())?;
            let options = spec.walk_options(&stages).map_err(|e| e.to_string())?;
            let policy = spec.policy().then(|| spec.learn.policy(spec.select.pattern, spec.windows.seed));
            let choice = spec.choice(&architecture);
            let clamps: Vec<bool> = stages.all().map(|stage| stage.clamp).collect();
            let is_read = spec.policy() || spec.method() == Method::Given;
            let start = is_read.then(|| spec.start_name().to_string());
            Ok(json!([
                stages.all().collect::<Vec<_>>(),
                options,
                policy,
                clamps,
                start,
                choice.windows,
                choice.window,
                format!("{:?}", choice.segments),
            ]))
        };
        let command = crate::run::toml::described();
        let methods = Method::value_variants().iter().map(|m| format!("--method={}", m.name()));
        let recipes = Recipe::value_variants().iter().map(|r| format!("--recipe={}", r.name()));
        let (mut silent, mut tried) = (Vec::new(), 0);
        for chosen in methods.chain(recipes) {
            let parse = |more: &[String]| {
                let start = (chosen == "--method=given").then(|| "--start=mask.safetensors".to_string());
                let words =
                    ["prune", "models/village", "--calib=text", "--eval=text", &chosen].map(String::from);
                let start = start.filter(|_| !more.iter().any(|word| word.starts_with("--start=")));
                RunSpec::parse(
                    words.into_iter().chain(start).chain(more.iter().cloned()).map(Into::into).collect(),
                )
            };
            let usual = resolved(&parse(&[]).expect("a run")).expect("a run");
            for arg in command.get_arguments().filter(|arg| !arg.is_global_set()) {
                let key = crate::run::toml::key(arg);
                if BESIDE.contains(&key.as_str())
                    || ["method", "recipe", "help", "version"].contains(&key.as_str())
                {
                    continue;
                }
                let values = arg.get_possible_values();
                let named = values.iter().map(|value| vec![format!("--{key}={}", value.get_name())]);
                let words: Vec<Vec<String>> = if arg.get_action().takes_values() && !values.is_empty() {
                    named.collect()
                } else {
                    vec![another(arg)]
                };
                // Whether these words are refused, by the command line or for this method, named, or make another run.
                let heard = |words: &Vec<String>| {
                    let Ok(spec) = parse(words) else { return true };
                    let Ok(now) = resolved(&spec) else { return true };
                    let stages = spec.stages().expect("stages");
                    let options = spec.walk_options(&stages).expect("options");
                    let readers = Readers::of(&spec, &stages, options.as_ref(), true);
                    now != usual || readers.unused(&spec.given()).iter().any(|(option, _)| *option == key)
                };
                tried += words.len();
                if !words.iter().any(heard) {
                    silent.push(format!("{chosen} {words:?}"));
                }
            }
        }
        assert!(tried > 300, "{tried}");
        assert!(silent.is_empty(), "{} of {tried} are silent:\n{}", silent.len(), silent.join("\n"));
    }
}
