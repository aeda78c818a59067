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
}

fn parse(text: &str) -> Result<PreferenceLoss> {
    text.parse()
}

impl PreferenceArgs {
    /// For the recipe.
    pub fn preference(self) -> Option<Preference> {
        self.preference.map(|loss| Preference { loss, beta: self.beta, rpo_alpha: self.rpo_alpha })
    }
}
