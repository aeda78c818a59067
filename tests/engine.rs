//! The engine's promises to callers: answers do not depend on what else is running.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod common;

use common::device::{load, repository};
use half::bf16;
use runtime::backend::BackendChoice;
use runtime::engine::text::{TextOptions, generate_text};
use runtime::engine::{Engine, EngineOptions, FinishReason, Grammar, KvSize, KvType, Request, SamplingParams};
use runtime::format::Checkpoint;
use runtime::format::random::{random_adapter, random_checkpoint};
use runtime::model::LoadedModel;
use runtime::tensor::{DType, HostTensor};
use runtime::token::Tokenizer;
use safetensors::SafeTensors;
use std::sync::Arc;

fn engine(kv_tokens: usize, max_seqs: usize) -> Engine {
    let model = load(&repository("tests/golden/tiny/chat"), BackendChoice::Cpu);
    let options = EngineOptions {
        max_len: Some(160),
        kv: KvSize::Tokens(kv_tokens),
        max_seqs,
        max_step_tokens: 24,
        ..EngineOptions::default()
    };
    Engine::start(model, options).unwrap()
}

fn request(n: u32) -> Request {
    let sampling =
        SamplingParams { temperature: 0.8, top_p: 0.9, seed: Some(u64::from(n)), ..SamplingParams::default() };
    let prompt = (0..20 + n).map(|i| 10 + (i * 7 + n) % 200).collect();
    Request { prompt, max_tokens: 100, ignore_eos: true, sampling, ..Request::default() }
}

fn ids(engine: &Engine, n: u32) -> Vec<u32> {
    generate_text(engine, request(n), TextOptions::default()).unwrap().ids
}

#[test]
fn answers_are_the_same_alone_together_and_when_the_cache_is_too_small() {
    let alone = engine(160, 1);
    let want: Vec<Vec<u32>> = (0..6).map(|n| ids(&alone, n)).collect();
    assert!(want.iter().all(|ids| ids.len() == 100));
    // 6 requests of about 125 tokens: together they fit 960 tokens, and have to be parked in turn with 320.
    for kv_tokens in [960, 320] {
        let shared = engine(kv_tokens, 6);
        let got: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..6)
                .map(|n| {
                    scope.spawn({
                        let shared = shared.clone();
                        move || ids(&shared, n)
                    })
                })
                .collect();
            running.into_iter().map(|r| r.join().unwrap()).collect()
        });
        assert_eq!(got, want, "with a cache of {kv_tokens} tokens");
    }
}

#[test]
fn what_cannot_work_is_refused() {
    let engine = engine(160, 1);
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut request = request(0);
        change(&mut request);
        generate_text(&engine, request, TextOptions::default()).unwrap_err().to_string()
    };
    assert!(refused(&|r| r.prompt.clear()).contains("no tokens"));
    assert!(refused(&|r| r.prompt[3] = 5000).contains("token 5000 at 3"));
    assert!(refused(&|r| r.max_tokens = 1000).contains("160 tokens"));
    assert!(refused(&|r| r.adapter = Some("nobody".into())).contains("'nobody'"));
    assert!(refused(&|r| r.sampling.top_p = 0.0).contains("top_p"));
    assert!(refused(&|r| r.sampling.temperature = f32::NAN).contains("temperature"));
    assert!(refused(&|r| r.allowed_ids = Some(Vec::new())).contains("allowed_ids"));
    assert!(refused(&|r| r.allowed_ids = Some(vec![5000])).contains("allowed_ids"));
    let ends =
        &|r: &mut Request| (r.allowed_ids, r.stop_ids, r.ignore_eos, r.min_tokens) = (Some(vec![9]), vec![9], false, 1);
    assert!(refused(ends).contains("min_tokens"));
    assert_eq!(ids(&engine, 1).len(), 100, "the engine lives on");
}

/// In a step with several adapters a row's own one is not the only one that is multiplied: the others by zero.
#[test]
fn adapters_that_are_not_finite_are_refused() {
    let model = load(&repository("tests/golden/tiny/chat"), BackendChoice::Cpu);
    let options = EngineOptions { max_len: Some(160), max_adapters: 1, ..EngineOptions::default() };
    let engine = Engine::start(model, options).unwrap();
    let mut adapter = random_adapter(engine.model().config(), 4).unwrap();
    let (module, weights) = adapter.modules.iter_mut().next().unwrap();
    let (module, mut b) = (module.clone(), vec![0.5; weights.b.len()]);
    b[weights.b.cols() + 2] = f32::NAN;
    weights.b = HostTensor::from_f32(weights.b.shape.clone(), &b).unwrap();
    let error = engine.load_adapter("broken", &adapter).unwrap_err().to_string();
    let wanted = format!("adapter 'broken': lora_B of '{module}' has NaN at [1, 2]");
    assert!(error.contains(&wanted), "{error}");
}

/// A step draws its tokens itself, unless somebody wants more of the choice: the same tokens come out.
#[test]
fn tokens_drawn_by_a_step_and_by_a_choice_are_the_same() {
    let filters: [(f32, f32, usize, f32); 6] = [
        (0.0, 1.0, 0, 0.0),
        (1.0, 1.0, 0, 0.0),
        (0.8, 0.9, 0, 0.0),
        (1.2, 1.0, 20, 0.0),
        (0.9, 0.8, 30, 0.02),
        (5.0, 0.99, 0, 0.1),
    ];
    let engine = engine(960, 2);
    for (n, (temperature, top_p, top_k, min_p)) in filters.into_iter().enumerate() {
        let sampling =
            SamplingParams { temperature, top_p, top_k, min_p, seed: Some(n as u64), ..SamplingParams::default() };
        let drawn = Request { sampling, ..request(n as u32) };
        let chosen = Request { logprobs: Some(1), ..drawn.clone() };
        // A bias of 0 and a minimum length change nothing but the path, the latter for half of the answer.
        let mut biased = drawn.clone();
        biased.sampling.logit_bias = vec![(1, 0.0)];
        let changing = Request { min_tokens: 50, stop_ids: vec![4000], ..drawn.clone() };
        let any = Request { grammar: Some(Grammar::Regex("(?s:.*)".into())), ..drawn.clone() };
        let ids = |request: Request| generate_text(&engine, request, TextOptions::default()).unwrap().ids;
        let want = ids(drawn.clone());
        assert_eq!(want.len(), 100);
        for (name, request) in [("logprobs", chosen.clone()), ("bias", biased), ("min_tokens", changing)] {
            assert_eq!(ids(request), want, "{name}: {n}");
        }
        // Special tokens and broken UTF-8 are no text, so a grammar of any text may say no to some.
        if temperature == 0.0 {
            assert_eq!(ids(any).len(), 100);
        }
        // Both kinds in one step.
        let (left, right) = std::thread::scope(|scope| {
            let left = scope.spawn(|| ids(drawn));
            (ids(chosen), left.join().unwrap())
        });
        assert_eq!((&left, &right), (&want, &want), "together: {n}");
    }
}

#[test]
fn penalties_biases_and_bans_decide() {
    let engine = engine(960, 4);
    let answer = |change: &dyn Fn(&mut Request)| {
        let mut request = Request { sampling: SamplingParams::default(), ..request(2) };
        change(&mut request);
        generate_text(&engine, request, TextOptions::default()).unwrap().ids
    };
    let distinct = |ids: &[u32]| ids.iter().collect::<std::collections::HashSet<_>>().len();
    let plain = answer(&|_| {});
    assert!(distinct(&plain) < 95, "{plain:?}");
    // Negative logits of what was seen become far lower: nothing comes twice, and nothing of the prompt.
    let fresh = answer(&|r| r.sampling.repetition_penalty = 1e6);
    assert_eq!(distinct(&fresh), 100);
    assert!(!request(2).prompt.iter().any(|id| fresh.contains(id)));
    let rarer = answer(&|r| (r.sampling.presence_penalty, r.sampling.frequency_penalty) = (2.0, 2.0));
    assert!(distinct(&rarer) > distinct(&plain), "{rarer:?}");
    assert_eq!(answer(&|r| r.sampling.logit_bias = vec![(123, 1000.0)]), [123; 100]);
    let first = plain[0];
    let banned = answer(&|r| (r.min_tokens, r.stop_ids) = (60, vec![first]));
    assert!(banned.len() >= 60 && !banned[..60].contains(&first));
    // Of a run only the last token is held back, and only behind the others.
    let pair = vec![plain[0], plain[1]];
    let other = answer(&|r| r.bad_words = vec![pair.clone()]);
    assert!(other[0] == pair[0] && other.windows(2).all(|two| *two != pair[..]), "{other:?}");
    let few = answer(&|r| r.allowed_ids = Some(vec![70, 7, 300]));
    assert!(few.iter().all(|id| [70, 7, 300].contains(id)), "{few:?}");
    // Guesses are held to all of it, too.
    let guessing = chat_engine(|options| options.guesses = 4);
    let same = |engine: &Engine, request: Request| generate_text(engine, request, TextOptions::default()).unwrap().ids;
    let held = Request { bad_words: vec![pair], allowed_ids: Some((0..200).collect()), max_tokens: 60, ..request(2) };
    assert_eq!(same(&guessing, held.clone()), same(&engine, held));
    let too_many = Request { logprobs: Some(21), ..request(2) };
    let refused = generate_text(&engine, too_many, TextOptions::default()).unwrap_err().to_string();
    assert!(refused.contains("logprobs") && refused.contains("20"), "{refused}");
}

#[test]
fn log_probabilities_of_an_answer_are_those_of_score() {
    let engine = engine(960, 4);
    // Penalties change what is chosen, not what is reported.
    let mut asked = Request { logprobs: Some(20), ..request(5) };
    (asked.sampling.frequency_penalty, asked.sampling.repetition_penalty) = (1.0, 1.3);
    let answer = generate_text(&engine, asked.clone(), TextOptions::default()).unwrap();
    let text: Vec<u32> = asked.prompt.iter().chain(&answer.ids).copied().collect();
    let want = engine.score(&text, None).unwrap().logprobs;
    assert_eq!(answer.tokens.len(), 100);
    for (i, token) in answer.tokens.iter().enumerate() {
        let got = token.logprobs.as_ref().unwrap();
        let want = want[asked.prompt.len() - 1 + i];
        assert!((got.logprob - want).abs() < 1e-4, "{} instead of {want}", got.logprob);
        assert!(got.top.len() == 20 && got.top.is_sorted_by(|a, b| a.1 >= b.1));
        let own = got.top.iter().find(|(id, _)| *id == token.id);
        assert!(own.is_none_or(|(_, logprob)| *logprob == got.logprob));
    }
}

fn chat_engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let model = load(&repository("tests/golden/tiny/chat"), BackendChoice::Cpu);
    let mut options = EngineOptions { max_len: Some(160), max_step_tokens: 24, ..EngineOptions::default() };
    change(&mut options);
    Engine::start(model, options).unwrap()
}

#[test]
fn a_prompt_that_was_seen_before_is_found_again() {
    let engine = chat_engine(|_| {});
    let first = generate_text(&engine, request(30), TextOptions::default()).unwrap();
    let again = generate_text(&engine, request(30), TextOptions::default()).unwrap();
    // A prompt of 50 tokens fills three pages of 16.
    assert_eq!((first.usage.cached_tokens, again.usage.cached_tokens), (0, 48));
    assert_eq!(first.ids, again.ids);
    let without = chat_engine(|options| options.prefix_cache = false);
    for _ in 0..2 {
        let plain = generate_text(&without, request(30), TextOptions::default()).unwrap();
        assert_eq!((plain.usage.cached_tokens, &plain.ids), (0, &first.ids));
    }
    let stats = engine.stats();
    assert_eq!((stats.prefix_queries, stats.prefix_hits, stats.kv_pages_used), (100, 48, 0));
}

#[test]
fn guesses_change_speed_and_nothing_else() {
    let (plain, guessing) = (chat_engine(|_| {}), chat_engine(|options| options.guesses = 4));
    for n in 0..4 {
        // Greedy answers of a tiny model repeat themselves, so guesses are right; sampled ones hardly do.
        for temperature in [0.0, 0.8] {
            let mut request = request(n);
            request.sampling.temperature = temperature;
            request.logprobs = (n % 2 == 1).then_some(1);
            if n == 3 {
                (request.sampling.frequency_penalty, request.sampling.repetition_penalty) = (0.1, 1.05);
                (request.min_tokens, request.stop_ids) = (30, vec![17, 40, 99]);
            }
            let ids = |engine: &Engine| generate_text(engine, request.clone(), TextOptions::default()).unwrap().ids;
            assert_eq!(ids(&guessing), ids(&plain), "request {n} at temperature {temperature}");
        }
    }
    let (stats, plain) = (guessing.stats(), plain.stats());
    assert!(stats.accepted_tokens > 50, "{stats:?}");
    assert!(stats.steps < plain.steps, "{} steps with guesses, {} without", stats.steps, plain.steps);
}

/// Answers of an engine to requests of all kinds, one after another and then all at once.
fn answers(engine: &Engine) -> Vec<(Vec<u32>, String, FinishReason)> {
    let adapter = random_adapter(engine.model().config(), 4).unwrap();
    engine.load_adapter("tuned", &adapter).unwrap();
    let mut asked = Vec::new();
    for n in 0..8 {
        let (mut request, mut options) = (Request { max_tokens: 60, ..request(n) }, TextOptions::default());
        match n {
            0 | 1 => request.sampling.temperature = 0.0,
            2 => request.sampling.logit_bias = vec![(17, 3.0), (310, 4.0)],
            3 => {
                (request.sampling.frequency_penalty, request.sampling.repetition_penalty) = (0.1, 1.05);
                (request.min_tokens, request.stop_ids) = (30, vec![17, 40, 99, 315]);
            }
            4 => request.adapter = Some("tuned".into()),
            5 => options.stop = vec!["e".into(), "a".into()],
            6 => (request.logprobs, request.prompt_logprobs) = (Some(2), Some(1)),
            _ => request.grammar = Some(Grammar::Regex("([0-9]{2}-){9}".into())),
        }
        asked.push((request, options));
    }
    let answer = |(request, options): &(Request, TextOptions)| {
        let done = generate_text(engine, request.clone(), options.clone()).unwrap();
        (done.ids, done.text, done.reason)
    };
    let mut answers: Vec<_> = asked.iter().map(answer).collect();
    answers.extend(std::thread::scope(|scope| {
        let running: Vec<_> = asked.iter().map(|asked| scope.spawn(move || answer(asked))).collect();
        running.into_iter().map(|r| r.join().unwrap()).collect::<Vec<_>>()
    }));
    answers
}

#[test]
fn a_draft_model_changes_speed_and_nothing_else() {
    let model = load(&repository("tests/golden/tiny/chat"), BackendChoice::Cpu);
    let start = |draft: Option<&Arc<LoadedModel>>, kv_tokens| {
        let options = EngineOptions {
            max_len: Some(160),
            max_step_tokens: 24,
            kv: KvSize::Tokens(kv_tokens),
            guesses: if draft.is_some() { 3 } else { 0 },
            draft: draft.cloned(),
            max_adapters: 1,
            ..EngineOptions::default()
        };
        Engine::start(model.clone(), options).unwrap()
    };
    let plain = start(None, 1280);
    let want = answers(&plain);
    // One that is always right, one that never is, and one that does not know the last tokens.
    let mut preemptions = 0;
    let drafts = [model.clone(), random_draft(&model, 320), random_draft(&model, 300)];
    for (which, draft) in drafts.iter().enumerate() {
        // All pages that they want, and so few that they have to be parked.
        for kv_tokens in [1280, 320] {
            let engine = start(Some(draft), kv_tokens);
            assert_eq!(answers(&engine), want, "draft {which}, a cache of {kv_tokens} tokens");
            let stats = engine.stats();
            assert!(stats.guesses > 0 && stats.guessed_tokens > stats.guesses, "{stats:?}");
            assert!(stats.prefix_hits > 0, "{stats:?}");
            preemptions += stats.preemptions;
            if which == 0 {
                // The draft knows nothing of the adapter.
                assert!(stats.accepted_tokens * 10 > stats.guessed_tokens * 8, "{stats:?}");
                assert!(stats.steps < plain.stats().steps, "{stats:?}");
            }
        }
    }
    assert!(preemptions > 0);
}

#[test]
fn a_draft_model_that_is_the_model_is_always_right() {
    let model = load(&repository("tests/golden/tiny/chat"), BackendChoice::Cpu);
    let engine = chat_engine(|options| (options.guesses, options.draft) = (4, Some(model)));
    let mut greedy = request(1);
    greedy.sampling.temperature = 0.0;
    for request in [request(0), greedy] {
        generate_text(&engine, request, TextOptions::default()).unwrap();
    }
    let stats = engine.stats();
    // A token comes from the prompt's last step, then five from each. The very last step may not be counted yet.
    assert!([(39, 155), (40, 158)].contains(&(stats.guesses, stats.guessed_tokens)), "{stats:?}");
    assert_eq!(stats.accepted_tokens, stats.guessed_tokens, "{stats:?}");
}

#[test]
fn a_draft_model_that_cannot_work_is_refused() {
    let model = load(&repository("tests/golden/tiny/chat"), BackendChoice::Cpu);
    let refused = |draft: Arc<LoadedModel>, guesses| {
        let options = EngineOptions { guesses, draft: Some(draft), ..EngineOptions::default() };
        let refused = Engine::start(model.clone(), options).err().expect("a refusal");
        assert!(matches!(refused, runtime::Error::Invalid(_)), "{refused}");
        refused.to_string()
    };
    assert!(refused(model.clone(), 0).contains("number of tokens"));
    let mut nameless = random_draft(&model, 300);
    Arc::get_mut(&mut nameless).unwrap().tokenizer = None;
    let text = refused(nameless, 2);
    assert!(text.contains("300 tokens") && text.contains("320"), "{text}");
    let mut other = random_draft(&model, 320);
    let mut words: serde_json::Value =
        serde_json::from_slice(&std::fs::read(repository("tests/golden/tiny/chat/tokenizer.json")).unwrap()).unwrap();
    let vocab = words["model"]["vocab"].as_object_mut().unwrap();
    let (left, right) = (vocab["a"].clone(), vocab["b"].clone());
    (vocab["a"], vocab["b"]) = (right, left);
    let nothing = serde_json::json!({});
    let tokenizer = Tokenizer::from_json(&serde_json::to_vec(&words).unwrap(), &nothing, &nothing).unwrap();
    Arc::get_mut(&mut other).unwrap().tokenizer = Some(tokenizer);
    let text = refused(other, 2);
    assert!(text.contains("another vocabulary") && text.contains("\"a\"") && text.contains("\"b\""), "{text}");
}

/// A model with `model`'s tokenizer, random weights and `vocab` tokens.
fn random_draft(model: &LoadedModel, vocab: usize) -> Arc<LoadedModel> {
    let folder = repository("tests/golden/tiny/chat");
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    (config["vocab_size"], config["num_hidden_layers"]) = (vocab.into(), 1.into());
    config.as_object_mut().unwrap().remove("layer_types");
    let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    let checkpoint = random_checkpoint(file.path().to_str().unwrap(), DType::F32, false).unwrap();
    let mut draft = LoadedModel::load(checkpoint, model.device.clone()).unwrap();
    let source = Checkpoint::open(&folder).unwrap().tokenizer;
    Arc::get_mut(&mut draft).unwrap().tokenizer = Some(Tokenizer::from_source(&source).unwrap());
    draft
}

#[test]
fn a_prompts_log_probabilities_are_those_of_score() {
    let engine = chat_engine(|_| {});
    let asked = Request { prompt_logprobs: Some(2), max_tokens: 3, ..request(9) };
    // In the company of others, and after the prompt is in the cache.
    for _ in 0..2 {
        let answers = std::thread::scope(|scope| {
            let other = scope.spawn(|| ids(&engine, 3));
            let mine = generate_text(&engine, asked.clone(), TextOptions::default()).unwrap();
            other.join().unwrap();
            mine
        });
        let want = engine.score(&asked.prompt, None).unwrap().logprobs;
        let got: Vec<f32> = answers.prompt.iter().map(|token| token.logprob).collect();
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < 1e-4, "{got} instead of {want}");
        }
        assert!(answers.prompt.iter().all(|token| token.top.len() == 2 && token.top[0].1 >= token.logprob));
    }
}

#[test]
fn served_log_probabilities_are_those_of_score_whatever_the_batch() {
    let engine = chat_engine(|options| {
        (options.max_seqs, options.max_adapters, options.max_rank, options.max_step_tokens) = (32, 4, 8, 64);
    });
    // Eight adapters for four places on the device.
    for rank in 1..=8 {
        let adapter = random_adapter(engine.model().config(), rank).unwrap();
        engine.load_adapter(&format!("rank-{rank}"), &adapter).unwrap();
    }
    let asked = |n: u32| Request {
        adapter: (!n.is_multiple_of(9)).then(|| format!("rank-{}", n % 9)),
        logprobs: Some(0),
        max_tokens: 20 + n as usize,
        ..request(n)
    };
    let served = |n: u32| {
        let text = generate_text(&engine, asked(n), TextOptions::default()).unwrap();
        let logprobs: Vec<f32> = text.tokens.iter().map(|token| token.logprobs.as_ref().unwrap().logprob).collect();
        (text.ids, logprobs)
    };
    let together: Vec<(Vec<u32>, Vec<f32>)> = std::thread::scope(|scope| {
        let served = &served;
        let running: Vec<_> = (0..32).map(|n| scope.spawn(move || served(n))).collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    });
    let mut seen = std::collections::HashSet::new();
    for (n, (ids, logprobs)) in (0..).zip(&together) {
        let Request { mut prompt, adapter, max_tokens, .. } = asked(n);
        let start = prompt.len();
        prompt.extend(ids);
        let scored = engine.score(&prompt, adapter.as_deref()).unwrap().logprobs;
        let alone = served(n);
        assert_eq!((ids.len(), logprobs.len(), &alone.0), (max_tokens, max_tokens, ids), "request {n}");
        for (at, want) in scored[start - 1..].iter().enumerate() {
            for got in [logprobs[at], alone.1[at]] {
                assert!((got - want).abs() < 2e-5, "request {n}, token {at}: {got} served, {want} scored");
            }
        }
        seen.insert(scored[..8].iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    }
    assert!(seen.len() >= 9, "adapters make a difference: {}", seen.len());
}

#[test]
fn a_late_request_ends_and_a_full_queue_refuses() {
    let engine = chat_engine(|options| (options.max_seqs, options.max_waiting) = (1, Some(0)));
    let late = Request { deadline: Some(std::time::Instant::now()), ..request(0) };
    let busy = generate_text(&engine, late.clone(), TextOptions::default()).unwrap_err();
    assert!(matches!(busy, runtime::Error::Busy(_)), "{busy}");
    let engine = chat_engine(|_| {});
    let done = generate_text(&engine, late, TextOptions::default()).unwrap();
    assert_eq!((done.reason, done.ids.len()), (FinishReason::Deadline, 0));
    assert_eq!(engine.stats().kv_pages_used, 0);
}

#[test]
fn answers_keep_to_their_grammar() {
    let engine = chat_engine(|_| {});
    let answer = |grammar: Grammar| {
        let mut request = Request { grammar: Some(grammar), ignore_eos: false, max_tokens: 60, ..request(1) };
        request.sampling.temperature = 1.5;
        generate_text(&engine, request, TextOptions::default()).unwrap()
    };
    for _ in 0..5 {
        let choice = answer(Grammar::Choice(vec!["yes".into(), "no \"way\"".into()]));
        assert!(["yes", "no \"way\""].contains(&choice.text.as_str()), "{choice:?}");
        let date = answer(Grammar::Regex("[0-9]{4}-[0-9]{2}".into()));
        assert!(date.text.len() == 7 && date.text.as_bytes()[4] == b'-', "{date:?}");
    }
    let schema = serde_json::json!({
        "type": "object",
        "properties": {"sky": {"enum": ["blue", "grey"]}, "birds": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["sky", "birds"],
        "additionalProperties": false,
    });
    let json = answer(Grammar::JsonSchema(schema));
    assert_eq!(json.reason, FinishReason::Stop, "{json:?}");
    let value: serde_json::Value = serde_json::from_str(&json.text).unwrap();
    assert!(value["birds"].as_i64().is_some_and(|n| (0..100).contains(&n)), "{value}");
    let wrong = |grammar: Grammar| {
        let request = Request { grammar: Some(grammar), ..request(1) };
        generate_text(&engine, request, TextOptions::default()).unwrap_err().to_string()
    };
    assert!(wrong(Grammar::Regex("(".into())).starts_with("grammar: "));
    assert!(wrong(Grammar::JsonSchema(serde_json::json!({"type": "colour"}))).contains("colour"));
    assert!(wrong(Grammar::Choice(Vec::new())).contains("empty"));
}

/// What 8-bit caches change: the answers a little, the tokens that fit the same memory by half and more, and nothing else.
#[test]
fn caches_of_8_bits_hold_more_and_answer_nearly_the_same() {
    let prompt = request(60).prompt;
    let start = |kv_type| {
        chat_engine(|options| {
            options.kv = KvSize::Bytes(400 << 10);
            (options.kv_type, options.max_seqs) = (kv_type, 64);
        })
    };
    let plain = start(KvType::Auto);
    let want = plain.score(&prompt, None).unwrap().logprobs;
    for (kv_type, most) in [(KvType::Fp8, 0.2), (KvType::Int8, 0.05)] {
        let engine = start(kv_type);
        let got = engine.score(&prompt, None).unwrap().logprobs;
        let difference: f32 = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).sum::<f32>() / want.len() as f32;
        assert!(difference > 0.0 && difference < most, "{kv_type:?}: {difference} nat on average");
        // Two heads of 32 f32s take 256 bytes, their codes and scales 72, in whole 16 bytes 80.
        let (pages, before) = (engine.stats().kv_pages, plain.stats().kv_pages);
        assert!(pages * 10 > before * 30 && pages * 10 < before * 33, "{kv_type:?}: {pages} pages instead of {before}");
        let first = generate_text(&engine, request(30), TextOptions::default()).unwrap();
        let again = generate_text(&engine, request(30), TextOptions::default()).unwrap();
        assert_eq!((again.usage.cached_tokens, again.ids), (48, first.ids));
        // Parked and computed again, a request finds the same numbers.
        let small = chat_engine(|o| (o.kv_type, o.kv, o.max_seqs) = (kv_type, KvSize::Tokens(320), 6));
        let got: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..6).map(|n| (n, small.clone())).collect();
            let running: Vec<_> = running.into_iter().map(|(n, small)| scope.spawn(move || ids(&small, n))).collect();
            running.into_iter().map(|r| r.join().unwrap()).collect()
        });
        let alone: Vec<Vec<u32>> = (0..6).map(|n| ids(&engine, n)).collect();
        assert_eq!(got, alone, "{kv_type:?}");
    }
    for (name, kv_type) in
        [("auto", KvType::Auto), ("fp8", KvType::Fp8), ("fp8_e4m3", KvType::Fp8), ("int8", KvType::Int8)]
    {
        assert_eq!(name.parse::<KvType>().unwrap(), kv_type);
    }
    let refused = "fp8_e5m2".parse::<KvType>().unwrap_err().to_string();
    assert!(refused.contains("fp8_e5m2") && refused.contains("fp8_e4m3 or int8"), "{refused}");
}

#[test]
fn an_embedding_is_what_the_head_sees_of_the_last_token() {
    // In two chunks; the head is the table of embeddings, so that table times an embedding makes transformers' logits.
    let engine = engine(160, 1);
    let read = |name: &str| std::fs::read(repository("tests/golden/tiny/chat").join(name)).unwrap();
    let (expected, model) = (read("expected.safetensors"), read("model.safetensors"));
    let (expected, model) = (SafeTensors::deserialize(&expected).unwrap(), SafeTensors::deserialize(&model).unwrap());
    let ids: Vec<u32> = wide(expected.tensor("ids_0").unwrap().data());
    let embedding = engine.embed(&ids, None).unwrap();
    let table = model.tensor("model.embed_tokens.weight").unwrap();
    let table: Vec<f32> = table.data().as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
    let logits = expected.tensor("logits_0").unwrap();
    let logits: Vec<f32> = logits.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    for (token, want) in logits[(ids.len() - 1) * 320..].iter().enumerate() {
        let row = &table[token * embedding.len()..][..embedding.len()];
        let got: f32 = row.iter().zip(&embedding).map(|(a, b)| a * b).sum();
        assert!((got - want).abs() < 1e-3, "token {token}: {got}, not {want}");
    }
}

fn wide(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect()
}
