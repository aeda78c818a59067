//! The part of `runtime train` that asks for preference tuning.

use runtime::Result;
use runtime::train::preference::DEFAULT_BETA;
use runtime::train::{Preference, PreferenceLoss};

/// Preference tuning instead of imitation.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct PreferenceArgs {
    /// Train on pairs of answers: rows have chosen and rejected, and a prompt
    #[arg(long, value_name = "dpo|hinge|ipo|orpo", value_parser = parse)]
    preference: Option<PreferenceLoss>,
    /// How near the model stays to the one it was; of orpo: the weight of the odds
    #[arg(long, value_name = "BETA", default_value_t = DEFAULT_BETA, requires = "preference")]
    beta: f64,
    /// Adds so many times the cross-entropy of the chosen answers
    #[arg(long, value_name = "ALPHA", default_value_t = 0.0, requires = "preference")]
    rpo_alpha: f64,
    /// Of dpo: the share of pairs that are taken to be the wrong way round (TRL's label_smoothing)
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, requires = "preference")]
    preference_smoothing: f64,
}

fn parse(text: &str) -> Result<PreferenceLoss> {
    text.parse()
}

impl PreferenceArgs {
    /// For the recipe.
    pub fn preference(self) -> Option<Preference> {
        let Self { beta, rpo_alpha, preference_smoothing: label_smoothing, .. } = self;
        self.preference.map(|loss| Preference { loss, beta, rpo_alpha, label_smoothing })
    }
}
