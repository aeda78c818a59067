//! `/metrics`: what vLLM reports, under its names, so that its dashboards and gateways work here.

use crate::engine::text::TextEvent;
use crate::engine::{Engine, FinishReason, Stats, Usage};
use prometheus::core::Collector;
use prometheus::{Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

// Seconds; vLLM's own buckets, which dashboards assume.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// What is counted; each server has its own.
pub(super) struct Metrics {
    registry: Registry,
    running: Gauge,
    waiting: Gauge,
    /// The same under its newer and its older name.
    kv_used: [Gauge; 2],
    preemptions: IntCounter,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    drafts: IntCounter,
    draft_tokens: IntCounter,
    accepted: IntCounter,
    queue: Histogram,
    prompt_total: IntCounter,
    generation_total: IntCounter,
    success: IntCounterVec,
    first_token: Histogram,
    /// The same under its newer and its older name.
    between_tokens: [Histogram; 2],
    whole: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    lora: GaugeVec,
    max_lora: usize,
    in_use: Mutex<InUse>,
}

/// Requests that wait for their first token, and those that have it, by adapter; the base model is `None`.
type InUse = BTreeMap<Option<String>, [usize; 2]>;
const WAITING: usize = 0;
const RUNNING: usize = 1;

impl Metrics {
    /// `model`: the label that all series have; `max_lora`, `cache_dtype`: what the two series of settings say.
    pub fn new(engine: &Engine, model: &str, max_lora: usize, cache_dtype: &str) -> Result<Self, prometheus::Error> {
        // One label: the registry writes several in no fixed order.
        let labels = [("model_name".to_owned(), model.to_owned())];
        let registry = Registry::new_custom(None, Some(labels.into_iter().collect()))?;
        let lengths = lengths(engine.max_len());
        let gauge = |name: &str, help: &str| register(&registry, Gauge::new(name, help)?);
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help)?);
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            register(&registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
        };
        let by_reason = Opts::new("vllm:request_success_total", "Requests by how they ended.");
        let by_adapter = Opts::new("vllm:lora_requests_info", "Adapters in use; the value is a time.");
        let adapters = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"];
        let success = register(&registry, IntCounterVec::new(by_reason, &["finished_reason"])?)?;
        // A series that is there from the start has a rate from the start.
        ["stop", "length", "abort", "error"].iter().for_each(|reason| drop(success.with_label_values(&[reason])));
        cache_config(&registry, &engine.stats(), cache_dtype)?;
        Ok(Self {
            running: gauge("vllm:num_requests_running", "Requests in the running batch.")?,
            waiting: gauge("vllm:num_requests_waiting", "Requests that wait to be worked on.")?,
            kv_used: [
                gauge("vllm:kv_cache_usage_perc", "Share of the cache that requests hold, from 0 to 1.")?,
                gauge("vllm:gpu_cache_usage_perc", "Older name of kv_cache_usage_perc.")?,
            ],
            preemptions: counter("vllm:num_preemptions_total", "Requests that gave up their part of the cache.")?,
            prefix_queries: counter("vllm:prefix_cache_queries_total", "Prompt tokens looked for in the cache.")?,
            prefix_hits: counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the cache.")?,
            drafts: counter("vllm:spec_decode_num_drafts_total", "How often tokens were guessed.")?,
            draft_tokens: counter("vllm:spec_decode_num_draft_tokens_total", "Tokens guessed.")?,
            accepted: counter("vllm:spec_decode_num_accepted_tokens_total", "Guesses that were right.")?,
            queue: histogram("vllm:request_queue_time_seconds", "Arrival to first step.", REQUEST)?,
            prompt_total: counter("vllm:prompt_tokens_total", "Tokens of prompts.")?,
            generation_total: counter("vllm:generation_tokens_total", "Tokens generated.")?,
            success,
            first_token: histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", FIRST_TOKEN)?,
            between_tokens: [
                histogram("vllm:inter_token_latency_seconds", "From one token to the next.", TOKEN)?,
                histogram("vllm:time_per_output_token_seconds", "Older name of inter_token_latency.", TOKEN)?,
            ],
            whole: histogram("vllm:e2e_request_latency_seconds", "Arrival to end.", REQUEST)?,
            prefill: histogram("vllm:request_prefill_time_seconds", "First step to first token.", REQUEST)?,
            decode: histogram("vllm:request_decode_time_seconds", "First token to last.", REQUEST)?,
            inference: histogram("vllm:request_inference_time_seconds", "First step to last token.", REQUEST)?,
            prompt_tokens: histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", &lengths)?,
            generation_tokens: histogram("vllm:request_generation_tokens", "Tokens of an answer.", &lengths)?,
            lora: register(&registry, GaugeVec::new(by_adapter, &adapters)?)?,
            max_lora,
            in_use: Mutex::default(),
            registry,
        })
    }

    /// All series in Prometheus' text format.
    pub fn text(&self, stats: &Stats) -> Result<String, prometheus::Error> {
        let in_use = self.in_use().clone();
        self.running.set(stats.running as f64);
        self.waiting.set(stats.waiting as f64);
        let used = stats.kv_pages_used as f64 / stats.kv_pages.max(1) as f64;
        self.kv_used.iter().for_each(|gauge| gauge.set(used));
        for (counter, total) in [
            (&self.preemptions, stats.preemptions),
            (&self.prefix_queries, stats.prefix_queries),
            (&self.prefix_hits, stats.prefix_hits),
            (&self.prompt_total, stats.prompt_tokens),
            (&self.generation_total, stats.generated_tokens),
            (&self.drafts, stats.guesses),
            (&self.draft_tokens, stats.guessed_tokens),
            (&self.accepted, stats.accepted_tokens),
        ] {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        let names = |which: usize| {
            let used = in_use.iter().filter(|(_, counts)| counts[which] > 0);
            used.filter_map(|(name, _)| name.as_deref()).collect::<Vec<_>>().join(",")
        };
        // As in vLLM: one series for each state of affairs, of which the newest counts.
        self.lora.reset();
        let labels = [&self.max_lora.to_string(), &names(RUNNING), &names(WAITING)];
        self.lora.with_label_values(&labels).set(super::http::unix_time() as f64);
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Starts to follow a request.
    pub fn watch(self: &Arc<Self>, adapter: Option<String>) -> Watch {
        self.in_use().entry(adapter.clone()).or_default()[WAITING] += 1;
        Watch { metrics: self.clone(), adapter, arrived: Instant::now(), last: None, over: false }
    }

    fn in_use(&self) -> MutexGuard<'_, InUse> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows one request; one that is dropped before its end was aborted.
pub(super) struct Watch {
    metrics: Arc<Metrics>,
    adapter: Option<String>,
    arrived: Instant,
    /// When the newest token came.
    last: Option<Instant>,
    over: bool,
}

impl Watch {
    /// Takes note of an event.
    pub fn event(&mut self, event: &TextEvent) {
        match event {
            TextEvent::Prompt(_) => {}
            TextEvent::Delta { tokens, .. } => self.tokens(tokens.len()),
            TextEvent::Done { reason: FinishReason::Cancelled, .. } => self.end("abort", None),
            TextEvent::Done { reason, usage, .. } => self.end(reason.as_str(), Some(usage)),
            TextEvent::Failed(_) => self.end("error", None),
        }
    }

    fn tokens(&mut self, count: usize) {
        let (now, metrics) = (Instant::now(), &self.metrics);
        match self.last.replace(now) {
            None => {
                metrics.first_token.observe(now.duration_since(self.arrived).as_secs_f64());
                let mut in_use = metrics.in_use();
                if let Some(counts) = in_use.get_mut(&self.adapter) {
                    counts[WAITING] -= 1;
                    counts[RUNNING] += 1;
                }
            }
            // Text that was held back comes with several tokens: the time is theirs together.
            Some(last) => {
                let each = now.duration_since(last).as_secs_f64() / count.max(1) as f64;
                for _ in 0..count {
                    metrics.between_tokens.iter().for_each(|histogram| histogram.observe(each));
                }
            }
        }
    }

    fn end(&mut self, reason: &str, usage: Option<&Usage>) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let metrics = &self.metrics;
        metrics.success.with_label_values(&[reason]).inc();
        if let Some(counts) = metrics.in_use().get_mut(&self.adapter) {
            counts[if self.last.is_some() { RUNNING } else { WAITING }] -= 1;
        }
        let Some(usage) = usage else { return };
        metrics.whole.observe(self.arrived.elapsed().as_secs_f64());
        metrics.queue.observe(usage.queue_s);
        metrics.prefill.observe(usage.prefill_s);
        metrics.decode.observe(usage.decode_s);
        metrics.inference.observe(usage.prefill_s + usage.decode_s);
        metrics.prompt_tokens.observe(usage.prompt_tokens as f64);
        metrics.generation_tokens.observe(usage.completion_tokens as f64);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end("abort", None);
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// The size of the cache, in labels: gateways work out from it how many tokens fit.
fn cache_config(registry: &Registry, stats: &Stats, dtype: &str) -> Result<(), prometheus::Error> {
    let opts = Opts::new("vllm:cache_config_info", "The key/value cache.");
    let info = register(registry, GaugeVec::new(opts, &["block_size", "cache_dtype", "num_gpu_blocks"])?)?;
    info.with_label_values(&[&*stats.kv_page_size.to_string(), dtype, &*stats.kv_pages.to_string()]).set(1.0);
    Ok(())
}

/// 1, 2, 5, 10, … up to the longest context.
fn lengths(max: usize) -> Vec<f64> {
    let all = (0..9).flat_map(|power| [1, 2, 5].map(|digit| digit * 10usize.pow(power)));
    all.take_while(|length| *length <= max).map(|length| length as f64).collect()
}
