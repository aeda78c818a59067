//! Counters of a running engine.

/// What an engine is doing and has done; read it with [`super::Engine::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Stats {
    /// Requests that are being computed.
    pub running: usize,
    /// Requests that wait for their turn, those that had to give up their pages included.
    pub waiting: usize,
    /// Pages of the key/value cache.
    pub kv_pages: usize,
    /// Positions in a page.
    pub kv_page_size: usize,
    /// Pages that requests hold; the others may still hold prefixes that can be found again.
    pub kv_pages_used: usize,
    /// How often a request had to give up its pages and was computed again later.
    pub preemptions: u64,
    /// Prompt tokens that were looked for in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens that were found there.
    pub prefix_hits: u64,
    /// Prompt tokens of the requests that were started.
    pub prompt_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// How often tokens were guessed: once for an answer in a step, however many.
    pub guesses: u64,
    /// Tokens that were guessed, and checked in one step with others.
    pub guessed_tokens: u64,
    /// Guesses that were right.
    pub accepted_tokens: u64,
    /// Steps on the device.
    pub steps: u64,
    /// Of steps of up to 2ⁱ rows (the last: of more, too): how many, and the seconds that they took.
    pub by_rows: [(u64, f64); 13],
    /// Seconds that the engine's thread worked: waiting for requests and for the device is left out. (The CPU backend computes on
    /// this thread.)
    pub host_s: f64,
}
