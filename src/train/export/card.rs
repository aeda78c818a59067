//! The model card: README.md beside an adapter or a model, in the form that the Hugging Face hub reads.

use crate::error::{Error, Result};
use crate::train::{DataReport, Recipe};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// Rows of the table of losses, at most.
const MAX_ROWS: usize = 20;

/// What a card says.
pub struct Card<'a> {
    /// Name or path of the model that the adapter belongs to.
    pub base_model: &'a str,
    /// What was run.
    pub recipe: &'a Recipe,
    /// What was read.
    pub data: &'a DataReport,
    /// FNV-1a over token ids and masks of the rows, in hexadecimal.
    pub data_hash: &'a str,
    /// Optimizer step and mean loss (nat a counted token), in order.
    pub losses: &'a [(usize, f64)],
}

/// Writes `README.md` into `folder`.
///
/// # Errors
/// [`Error::Io`].
pub fn write_card(folder: &Path, card: &Card) -> Result<()> {
    let path = folder.join("README.md");
    std::fs::write(&path, text(card)?).map_err(|e| Error::io(&path, e))
}

fn text(card: &Card) -> Result<String> {
    let internal = |e: serde_json::Error| Error::internal(e.to_string());
    let base = serde_json::to_string(card.base_model).map_err(internal)?;
    let (name, recipe) = (card.base_model, card.recipe);
    let (library, tags) = match recipe.full_finetuning {
        true => ("transformers", format!("- base_model:finetune:{name}")),
        false => ("peft", format!("- lora\n- base_model:adapter:{name}")),
    };
    let mut out = format!(
        "---\nbase_model: {base}\nlibrary_name: {library}\npipeline_tag: text-generation\ntags:\n{tags}\n---\n\n"
    );
    let data = card.data;
    out += &match (recipe.full_finetuning, recipe.modules_to_save.is_empty()) {
        (true, _) => format!(
            "# {name}, fine-tuned\n\nLoads with transformers (`AutoModelForCausalLM.from_pretrained`) and with `runtime serve FOLDER`.\n\n"
        ),
        (false, true) => format!(
            "# LoRA adapter for {name}\n\nLoads with PEFT (`PeftModel.from_pretrained`) and with `runtime serve --adapter NAME=FOLDER`.\n\n"
        ),
        (false, false) => format!(
            "# LoRA adapter and whole modules ({}) for {name}\n\nLoads with PEFT (`PeftModel.from_pretrained`); `runtime merge` \
             makes a model of it.\n\n",
            recipe.modules_to_save.join(", ")
        ),
    };
    out += "## Data\n\n";
    out += &format!(
        "{} rows, {} tokens ({} counted by the loss), the longest {}; {} cut at max_length, {} left out. Hash of tokens and masks: `{}`.\n\n",
        data.rows,
        data.tokens,
        data.counted,
        data.longest,
        data.truncated,
        data.skipped.len(),
        card.data_hash
    );
    out += "## Loss\n\nMean over the counted tokens of a step, in nat.\n\n| step | loss |\n|---:|---:|\n";
    let every = card.losses.len().div_ceil(MAX_ROWS).max(1);
    for (i, (step, loss)) in card.losses.iter().enumerate() {
        if i % every == 0 || i + 1 == card.losses.len() {
            // Writing to a String does not fail.
            let _ = writeln!(out, "| {step} | {loss:.4} |");
        }
    }
    let recipe = serde_json::to_value(recipe).map_err(internal)?;
    out += "\n## Recipe\n\n| field | value |\n|---|---|\n";
    for (field, value) in recipe.as_object().into_iter().flatten() {
        let unset = value.is_null() || value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty);
        if !unset {
            let _ = writeln!(out, "| {field} | {} |", cell(value));
        }
    }
    Ok(out)
}

/// A value in a table: a bar would end the cell.
fn cell(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_says_what_was_run() {
        let recipe = Recipe { rank: Some(8), ..Recipe::default() };
        let data = DataReport { rows: 3, tokens: 50, counted: 20, longest: 30, ..DataReport::default() };
        let losses: Vec<(usize, f64)> = (1..=100).map(|i| (i, 2.0 / i as f64)).collect();
        let card = Card { base_model: "tiny", recipe: &recipe, data: &data, data_hash: "abcd", losses: &losses };
        let text = text(&card).unwrap();
        assert!(text.starts_with("---\nbase_model: \"tiny\"\nlibrary_name: peft\n"), "{text}");
        for part in ["3 rows, 50 tokens (20 counted", "`abcd`", "| 1 | 2.0000 |", "| 100 | 0.0200 |", "| rank | 8 |"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("| alpha |"), "what is not set is left out: {text}");
        assert!(text.matches(" |\n| ").count() < 60, "hundred losses are thinned out: {text}");
    }
}
