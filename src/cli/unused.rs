//! Options of `prune` that nothing in a run reads.

use super::method_args::MaskProArgs;
use super::train_args::TrainArgs;
use crate::prune::learn::{Objective, Stage, Trains};

/// Who reads options.
pub(super) struct Readers<'a> {
    /// The stages of the run, that in the walk included.
    pub(super) stages: &'a [&'a Stage],
    /// Whether MaskPro learns on the model's loss.
    pub(super) policy: bool,
}

impl Readers<'_> {
    fn any(&self, reads: impl Fn(&Stage) -> bool) -> bool {
        self.stages.iter().any(|stage| reads(stage))
    }

    fn trains(&self, which: &[Trains]) -> bool {
        self.any(|stage| which.contains(&stage.trains))
    }

    /// The options given that nothing reads, each with what does.
    pub(super) fn unused(&self, train: &TrainArgs, learn: &MaskProArgs) -> Vec<(&'static str, &'static str)> {
        let relaxed = self.trains(&[Trains::Relaxed, Trains::Joint]);
        let maskllm = self.trains(&[Trains::MaskLlm]);
        let weights = self.any(|stage| stage.trains.weights());
        let repairs = self.trains(&[Trains::Weights]);
        let learns = self.policy || self.any(|stage| stage.trains.masks());
        let logits = self.policy || self.any(|stage| stage.trains.masks() && stage.trains.logits());
        let on_model = |stage: &Stage| stage.objective == Objective::Model;
        let policy = self.policy || self.trains(&[Trains::MaskPro]);
        let learning = "methods that learn";
        let options = [
            ("--steps", !learn.steps.is_empty(), learns, learning),
            ("--rate", !learn.rate.is_empty(), learns, learning),
            ("--logits", !learn.logits.is_empty(), logits, "methods that learn logits"),
            (
                "--batch",
                learn.batch_given().is_some(),
                learns || repairs,
                "methods that learn and repairs that train",
            ),
            ("--alpha", learn.alpha.is_some(), policy, "maskpro"),
            ("--temperature", !train.temperature.is_empty(), relaxed || maskllm, "relaxed and maskllm"),
            ("--noise", !train.noise.is_empty(), relaxed || maskllm, "relaxed and maskllm"),
            ("--relaxation", train.relaxation.is_some(), relaxed, "relaxed"),
            ("--kappa", train.kappa.is_some(), maskllm, "maskllm"),
            ("--prior", train.prior.is_some(), maskllm, "maskllm"),
            ("--regulariser", train.regulariser.is_some(), maskllm, "maskllm"),
            ("--lambda", train.lambda.is_some(), self.trains(&[Trains::ProxSparse]), "proxsparse"),
            (
                "--loss",
                train.loss.is_some(),
                self.any(|stage| on_model(stage) && stage.trains.masks()),
                "masks learned with --objective model",
            ),
            ("--blocks", train.blocks.is_some(), self.any(on_model), "--objective model and --repair model"),
            (
                "--warm-up",
                train.warm_up.is_some(),
                weights || self.trains(&[Trains::ProxSparse]),
                "--joint, --repair block and model, and proxsparse",
            ),
            ("--repair-steps", !train.repair_steps.is_empty(), repairs, "--repair block and model"),
            ("--repair-rate", !train.repair_rate.is_empty(), repairs, "--repair block and model"),
        ];
        let unread = options.into_iter().filter(|&(_, given, read, _)| given && !read);
        unread.map(|(name, _, _, what)| (name, what)).collect()
    }
}
