//! `runtime bench --train-while-serving`

use crate::common;
use runtime::Result;
use runtime::model::LoadedModel;
use runtime::train::Optim;
use runtime::tune::bench::{TogetherOptions, TogetherReport, run};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// What `bench --train-while-serving` takes besides.
#[derive(clap::Args)]
pub struct TogetherArgs {
    /// Instead: train while streams decode, for each --train-share, and time published versions
    #[arg(long, conflicts_with_all = ["traffic", "max_tokens", "batch", "train", "profile"])]
    pub train_while_serving: bool,
    /// Streams that decode all the time
    #[arg(long, value_name = "N", default_value_t = 32, requires = "train_while_serving")]
    streams: usize,
    /// Training's shares of the time, as in `runtime serve`, measured one after another
    #[arg(
        long,
        value_name = "0…1,…",
        default_value = "0.1,0.25,0.5,0.75,0.9",
        value_delimiter = ',',
        requires = "train_while_serving"
    )]
    train_share: Vec<f64>,
    /// Longest time between two tokens that training may lead to, in milliseconds
    #[arg(long, value_name = "MS", requires = "train_while_serving")]
    itl_slo_ms: Option<f64>,
    /// Seconds of each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, requires = "train_while_serving")]
    seconds: f64,
    /// Publishes to time
    #[arg(long, value_name = "N", default_value_t = 100, requires = "train_while_serving")]
    publishes: usize,
}

/// Sizes that other benches have, too.
pub struct Sizes {
    pub prompt: usize,
    pub batch: usize,
    pub length: usize,
    pub rank: usize,
    pub optim: Optim,
    pub recompute: bool,
    pub json: bool,
}

impl TogetherArgs {
    pub fn run(&self, model: &Arc<LoadedModel>, sizes: &Sizes) -> Result<()> {
        let options = TogetherOptions {
            streams: self.streams,
            prompt: sizes.prompt,
            batch: sizes.batch,
            length: sizes.length,
            rank: sizes.rank,
            optim: sizes.optim,
            recompute: sizes.recompute,
            shares: self.train_share.clone(),
            itl_slo: self.itl_slo_ms.map(|ms| Duration::from_secs_f64((ms / 1e3).max(0.0))),
            seconds: self.seconds,
            publishes: self.publishes,
        };
        let report = run(model, &options)?;
        if sizes.json { common::print_json(&report) } else { common::print(&table(&report)) }
    }
}

fn table(r: &TogetherReport) -> String {
    let mut text = format!(
        "{} on {}: {} streams, training of {} × {} tokens\n  training alone {:.0} tok/s, at the idle server {:.0} tok/s ({:.1} %)\n",
        r.model,
        r.device,
        r.streams,
        r.train_batch[0],
        r.train_batch[1],
        r.train_loop_tok_s,
        r.train_alone_tok_s,
        100.0 * r.idle_kept
    );
    let _ = writeln!(text, "  share   training tok/s   kept   answers tok/s   ITL p50   p99       p99 grows");
    let ms = |seconds: f64| 1e3 * seconds;
    let (p50, p99, tok_s) = (ms(r.itl_alone.p50), ms(r.itl_alone.p99), r.itl_alone.tok_s);
    let _ = writeln!(text, "  none    {:>14}   {:>4}   {tok_s:>13.0}   {p50:>7.2}   {p99:>7.2}", "–", "–");
    for t in &r.together {
        let _ = writeln!(
            text,
            "  {:<5.2}   {:>14.0}   {:>3.0} %   {:>12.0}   {:>7.2}   {:>7.2}   {:>+6.0} %",
            t.train_share,
            t.train_tok_s,
            100.0 * t.train_kept,
            t.itl.tok_s,
            ms(t.itl.p50),
            ms(t.itl.p99),
            100.0 * (t.p99_growth - 1.0)
        );
    }
    let [median, p99, max] = r.publish_to_token_s.map(ms);
    let _ = writeln!(
        text,
        "  publish to first token: {median:.2} ms (median), {p99:.2} ms (p99), {max:.2} ms (longest of {})",
        r.publishes
    );
    text
}
