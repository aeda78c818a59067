//! The scheduler under load, on a runner without a device: each token is a function of what the cache holds for its
//! sequence, so a page or an adapter in the wrong place changes an answer.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::backend::{BackendChoice, Bindings, ComputeType, open};
use crate::engine::adapters::Registry;
use crate::engine::choice::Chosen;
use crate::engine::request::{Event, Request};
use crate::engine::sequence::Ticket;
use crate::engine::steps::StepSizes;
use crate::format::Checkpoint;
use crate::format::peft::Adapter;
use crate::model::LoadedModel;
use crate::model::decoder::buffers;
use crate::model::lora::LoraLayout;
use crate::tensor::{DType, HostTensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::sync::mpsc::channel;

const VOCAB: u32 = 5000;
const MAX_LEN: usize = 256;
/// Ends an answer early, now and then.
const END: u32 = 7;

/// A token that depends on all the tokens before it, their positions and the adapter.
fn next_token(history: impl Iterator<Item = Entry>) -> u32 {
    let mix = |sum: u64, (token, position, adapter): Entry| {
        (sum ^ (u64::from(token) << 32 | u64::from(position) << 16 | u64::from(adapter)))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29)
    };
    // A small range of tokens, so that guesses are right sometimes.
    (history.fold(1, mix) % 40) as u32
}

/// Token, position, and the adapter's mark (0 for none) of a cache row.
type Entry = (u32, u32, u32);

struct Fake {
    sizes: StepSizes,
    cache: Vec<Entry>,
    tokens: Vec<u32>,
    model: Arc<LoadedModel>,
    bank: Bindings,
    layout: LoraLayout,
}

impl Fake {
    /// The first number of the adapter that lies in a slot.
    fn mark(&self, slot: u32) -> u32 {
        if slot == u32::MAX {
            return 0;
        }
        let entry = &self.layout.entries[0];
        let mut number = [0; 4];
        let at = (entry.a + slot as usize * self.layout.rank * entry.inputs) * 4;
        self.model.device.read(&self.bank[buffers::LORA], at, &mut number).unwrap();
        f32::from_le_bytes(number) as u32
    }
}

impl Runner for Fake {
    fn sizes(&self) -> &StepSizes {
        &self.sizes
    }

    fn launch(&mut self, input: &StepInput) -> Result<()> {
        assert!(input.ids.len() <= self.sizes.max_rows && input.gather.len() <= self.sizes.max_gathered);
        for row in 0..input.ids.len() {
            let mark = self.mark(input.adapters[row]);
            self.cache[input.slots[row] as usize] = (input.ids[row], input.positions[row], mark);
        }
        let pages = self.sizes.pages_per_seq();
        let token = |row: &u32| {
            let (row, table) = (*row as usize, &input.table[input.seqs[*row as usize] as usize * pages..]);
            next_token((0..=input.positions[row]).map(|position| {
                let at = table[position as usize / PAGE] as usize * PAGE + position as usize % PAGE;
                assert_eq!(self.cache[at].1, position, "a page that belongs to somebody else");
                self.cache[at]
            }))
        };
        self.tokens = input.gather.iter().map(token).collect();
        Ok(())
    }

    fn choose(&mut self, input: &StepInput, choice: &ChoiceInput) -> Result<()> {
        assert!(choice.rows() <= input.gather.len());
        Ok(())
    }

    fn finish(&mut self) -> Result<Chosen> {
        Ok(Chosen::tokens(std::mem::take(&mut self.tokens)))
    }

    fn losses(&mut self, _: &StepInput, labels: &[u32], _: Option<Instant>) -> Result<Option<Vec<f32>>> {
        Ok(Some(vec![0.0; labels.len()]))
    }

    fn hidden(&mut self, _: &StepInput, _: Option<Instant>) -> Result<Option<Vec<f32>>> {
        Ok(Some(vec![0.0]))
    }

    fn prepare(&mut self) -> Result<bool> {
        Ok(false)
    }
}

/// What a request's caller has heard.
#[derive(Default)]
struct Heard {
    ids: Vec<u32>,
    end: Option<FinishReason>,
}

struct Asked {
    prompt: Vec<u32>,
    max_tokens: usize,
    ignore_eos: bool,
    mark: u32,
    cancelled: bool,
}

/// The answer that a request gets alone.
fn expected(asked: &Asked) -> (Vec<u32>, FinishReason) {
    let mut text = asked.prompt.clone();
    loop {
        let history = text.iter().enumerate().map(|(position, token)| (*token, position as u32, asked.mark));
        let token = next_token(history);
        if token == END && !asked.ignore_eos {
            return (text.split_off(asked.prompt.len()), FinishReason::Stop);
        }
        text.push(token);
        if text.len() - asked.prompt.len() == asked.max_tokens {
            return (text.split_off(asked.prompt.len()), FinishReason::Length);
        }
    }
}

#[test]
fn ten_thousand_random_requests() {
    random_requests(10_000, 0.6, false);
}

#[test]
fn random_requests_with_a_draft_that_knows_no_adapters() {
    let stats = random_requests(2_000, 0.6, true);
    assert!(stats.accepted_tokens < stats.guessed_tokens, "{stats:?}");
}

/// A draft that is the model itself is never wrong, unless its cache holds something else than the model's.
#[test]
fn random_requests_with_a_draft_that_is_right() {
    let stats = random_requests(2_000, 0.0, true);
    assert_eq!(stats.accepted_tokens, stats.guessed_tokens, "{stats:?}");
}

/// Requests of random lengths, priorities and adapters, some cancelled, adapters replaced all the time, in a cache for a few
/// of them: each gets the answer that it gets alone, in a bounded time, and every page comes back. With `drafts`, answers
/// end at their full length only.
fn random_requests(count: u64, adapters: f64, drafts: bool) -> Stats {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let device = open(BackendChoice::Cpu, 0, ComputeType::F32).unwrap();
    let model = LoadedModel::load(Checkpoint::open(&folder.join("tiny/chat")).unwrap(), device).unwrap();
    let mut adapter = Adapter::read(&folder.join("sft/tiny_chat/init"), model.config()).unwrap();
    let rank = adapter.modules.values().map(|m| m.a.rows()).max().unwrap();
    let bank = AdapterBank::new(model.clone(), 3, rank, false).unwrap();
    let mut registry = Registry::new(Some(bank.layout().clone()), DType::F32);
    let module = bank.layout().entries[0].module.clone();
    let mut load = |registry: &mut Registry, name: &str, mark: u32| {
        let a = &mut adapter.modules.get_mut(&module).unwrap().a;
        *a = HostTensor::from_f32(a.shape.clone(), &vec![mark as f32; a.len()]).unwrap();
        registry.load(name, &adapter).unwrap();
    };

    let pages = 40;
    let sizes = StepSizes {
        max_rows: 48,
        max_seqs: 12,
        max_gathered: 24,
        max_len: MAX_LEN,
        kv_rows: pages * PAGE,
        kv_dtype: DType::F32,
    };
    let fake = |sizes: StepSizes| Fake {
        cache: vec![(0, u32::MAX, 0); sizes.kv_rows],
        sizes,
        tokens: Vec::new(),
        model: model.clone(),
        bank: bank.bindings().clone(),
        layout: bank.layout().clone(),
    };
    let draft_sizes = StepSizes { max_rows: sizes.max_rows + sizes.max_seqs, max_gathered: sizes.max_seqs, ..sizes };
    let draft = drafts.then(|| Draft::new(Box::new(fake(draft_sizes)), (VOCAB as usize, VOCAB as usize)));
    let (commands, inbox) = channel();
    let stats = Arc::new(Mutex::new(Stats::default()));
    let parts = Parts {
        inbox,
        runner: Box::new(fake(sizes)),
        pool: PagePool::new(pages, true),
        bank: Some(bank),
        registry: Arc::new(Mutex::new(Registry::new(None, DType::F32))),
        ends: vec![END],
        vocab: VOCAB as usize,
        guesses: 3,
        guess_runs: 2..=4,
        draft,
        runs_ahead: true,
        warm: false,
        stats: stats.clone(),
    };
    let worker = std::thread::spawn(move || Worker::new(parts).run());

    let mut random = ChaCha8Rng::seed_from_u64(1);
    let waiting = Arc::default();
    let order = Arc::new(Mutex::new(Vec::new()));
    let (done, finished) = channel();
    let mut all = Vec::new();
    let mut marks = [0; 5];
    for id in 0..count {
        let which = random.random_range(0..5);
        if marks[which] == 0 || random.random_bool(0.05) {
            marks[which] = 1 + id as u32;
            load(&mut registry, &which.to_string(), marks[which]);
        }
        let with_adapter = random.random_bool(adapters);
        let version = with_adapter.then(|| registry.get(&which.to_string()).unwrap());
        // Prompts begin in one of a few ways, as chats do.
        let shared = random.random_range(0..100);
        let start = random.random_range(0..6u32);
        let mut prompt: Vec<u32> = (0..shared).map(|i| 100 + start * 7 + i).collect();
        prompt.extend((0..random.random_range(1..60)).map(|_| random.random_range(0..VOCAB)));
        let max_tokens = random.random_range(1..80).min(MAX_LEN - prompt.len());
        let request = Request {
            prompt: prompt.clone(),
            max_tokens,
            ignore_eos: drafts,
            // Those that want more than a draw take another way through a step.
            logprobs: random.random_bool(0.05).then_some(1),
            prompt_logprobs: random.random_bool(0.02).then_some(1),
            priority: i32::from(random.random_bool(0.1)),
            ..Request::default()
        };
        let (priority, mark) = (request.priority, if with_adapter { marks[which] } else { 0 });
        let cancelled = random.random_bool(0.1);
        let (done, order) = (done.clone(), order.clone());
        let mut heard = Heard::default();
        let sink = move |event| {
            match event {
                Event::Started { .. } => order.lock().unwrap().push((priority, id)),
                Event::Prompt(_) => {}
                Event::Token { id, .. } => heard.ids.push(id),
                Event::Done { reason, .. } => {
                    heard.end = Some(reason);
                    done.send((id, std::mem::take(&mut heard))).unwrap();
                }
                Event::Failed(error) => panic!("{error}"),
            }
            ControlFlow::Continue(())
        };
        let ticket = Ticket::new(&waiting);
        let arrival =
            Arrival { id: RequestId(id), request, sink: Box::new(sink), adapter: version, constraint: None, ticket };
        all.push(Asked { prompt, max_tokens, ignore_eos: drafts, mark, cancelled });
        commands.send(Command::Submit(Box::new(arrival))).unwrap();
        if cancelled {
            let earlier = RequestId(id - random.random_range(0..20u64).min(id));
            all[earlier.0 as usize].cancelled = true;
            commands.send(Command::Cancel(earlier)).unwrap();
        }
        // Arrivals in bursts, faster than they can be served, but not all at once.
        while id % 50 == 0 && stats.lock().unwrap().waiting > 500 {
            std::thread::yield_now();
        }
    }
    drop(done);
    for _ in 0..all.len() {
        let (id, heard) = finished.recv_timeout(std::time::Duration::from_secs(60)).expect("a request was forgotten");
        let asked = &all[id as usize];
        let (ids, reason) = expected(asked);
        if heard.end == Some(FinishReason::Cancelled) {
            assert!(asked.cancelled && ids.starts_with(&heard.ids), "request {id}");
        } else {
            assert_eq!((heard.ids, heard.end), (ids, Some(reason)), "request {id}");
        }
    }
    // Nobody is overtaken by more than those that admission may look past and those that run.
    let order = order.lock().unwrap();
    let first: Vec<u64> = order.iter().filter(|(priority, _)| *priority == 0).map(|(_, id)| *id).collect();
    for (at, id) in first.iter().enumerate() {
        let overtaken_by = first[..at].iter().filter(|earlier| *earlier > id).count();
        assert!(overtaken_by <= 4 * LOOK_AHEAD, "request {id} was overtaken by {overtaken_by}");
    }
    commands.send(Command::Shutdown).unwrap();
    worker.join().unwrap();
    let stats = *stats.lock().unwrap();
    assert_eq!((stats.kv_pages_used, stats.running), (0, 0));
    assert!(stats.preemptions > 0 && stats.prefix_hits > 0 && stats.accepted_tokens > 0, "{stats:?}");
    stats
}
