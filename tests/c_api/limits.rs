//! Memory that is limited, runs out and comes back; many threads at once.

use crate::exports::*;
use crate::support::*;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[test]
fn memory_is_known_limited_and_comes_back() {
    let e = Engine::cpu(RUNTIME_RUN_STEPPED);
    let tiny = root().join(TINY);
    let path = tiny.to_str().unwrap();
    unsafe {
        let mut needs: runtime_requirements = std::mem::zeroed();
        let (data, len) = (path.as_ptr().cast(), path.len());
        let status = runtime_engine_get_requirements(e.engine, data, len, null(), &mut needs, null_mut());
        assert_eq!(status, RUNTIME_OK);
        let mut model = runtime_model { id: 0 };
        runtime_engine_set_memory_limit(e.engine, 0, needs.weights / 2, null_mut());
        runtime_model_load(e.engine, data, len, null(), &mut model, null_mut());
        assert_eq!(runtime_model_wait(model, 60_000, null_mut()), RUNTIME_ERROR_OUT_OF_MEMORY);
        runtime_model_release(model);
        e.until(|e| e.memory().total == 0);
        runtime_engine_set_memory_limit(e.engine, 0, 0, null_mut());
        runtime_model_load(e.engine, data, len, null(), &mut model, null_mut());
        assert_eq!(runtime_model_wait(model, 60_000, null_mut()), RUNTIME_OK);
        let used = e.memory();
        println!("asked for {} weights, {} kv; uses {} and {}", needs.weights, needs.kv, used.weights, used.kv);
        assert_eq!(used.kv, needs.kv);
        assert_eq!(used.weights, needs.weights + needs.adapters);
        let error = runtime_engine_set_memory_limit(e.engine, 2, 1, null_mut());
        assert_eq!(error, RUNTIME_ERROR_INVALID_ARGUMENT);
        // Above the soft limit: an event, once, and programs are given back.
        runtime_engine_set_memory_limit(e.engine, 1, 0, null_mut());
        e.work(1);
        let event = e.wait_for(RUNTIME_EVENT_MEMORY_PRESSURE, 0);
        assert!(event.done > event.total);
        assert!(e.memory().activations < used.activations, "trimmed");
        runtime_model_release(model);
        e.until(|e| e.memory().total == 0);
    }
}

#[test]
fn out_of_memory_at_every_allocation() {
    use runtime::embed::{Generate, Host, HostOptions, Model, ModelOptions, ModelSource, Session};
    let options =
        HostOptions { backend: runtime::backend::BackendChoice::Cpu, stepped: true, ..HostOptions::default() };
    let host = Host::new(options).unwrap();
    let mut n = 0;
    loop {
        n += 1;
        host.ledger().fail_at(n);
        let model = Model::new(&host);
        model.load(ModelSource::Path(root().join(TINY)), &ModelOptions::default(), 1, 0).unwrap();
        let loaded = model.wait(None);
        let outcome = loaded.and_then(|_| {
            let session = Session::new(&model)?;
            session.append_text("Hello")?;
            let request = session.ask(0);
            session.generate(Generate { max_tokens: 4, logprobs: true, ..Generate::default() }, &request)?;
            while host.step(Duration::from_secs(1))? {}
            Ok(())
        });
        let mut failed = outcome.is_err();
        host.poll(1000, &mut |_, event| failed |= event.error.is_some());
        let injected = host.ledger().disarm();
        assert_eq!(failed, injected, "allocation {n}");
        drop(model);
        // The loading thread may be about to end.
        let deadline = Instant::now() + Duration::from_secs(10);
        while host.memory().total() > 0 && Instant::now() < deadline {
            host.step(Duration::ZERO).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(host.memory().total(), 0, "allocation {n}");
        if !injected {
            break;
        }
    }
    println!("memory ran out at each of {} allocations", n - 1);
    assert!(n > 20);
}

#[test]
fn eight_threads_cancel_poll_and_release() {
    let e = Engine::loaded(RUNTIME_RUN_THREAD);
    let stop = Instant::now() + Duration::from_secs(3);
    let rounds = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (e, rounds) = (&e, &rounds);
            scope.spawn(move || {
                while Instant::now() < stop {
                    rounds.fetch_add(1, Ordering::Relaxed);
                    if thread < 2 {
                        let mut event: runtime_event = unsafe { std::mem::zeroed() };
                        let mut n = 0;
                        unsafe { runtime_engine_poll(e.engine, &mut event, 1, &mut n, null_mut()) };
                        continue;
                    }
                    let session = e.session("Hello");
                    let request = e.generate(session, 16, |o| o.ignore_eos = 1);
                    // A request's handle lives until its last event is polled.
                    for _ in 0..4 {
                        let mut events: [runtime_event; 64] = unsafe { std::mem::zeroed() };
                        let mut n = 0;
                        unsafe { runtime_engine_poll(e.engine, events.as_mut_ptr(), 64, &mut n, null_mut()) };
                    }
                    if thread % 2 == 0 {
                        std::thread::sleep(Duration::from_micros(100 * thread));
                    }
                    if thread % 3 != 0 {
                        let status = unsafe { runtime_request_cancel(request, null_mut()) };
                        assert!([RUNTIME_OK, RUNTIME_ERROR_STALE_HANDLE].contains(&status));
                    }
                    assert_eq!(runtime_session_release(session), RUNTIME_OK);
                    if thread % 3 == 0 {
                        // Not faster than the engine answers.
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            });
        }
    });
    println!("{} rounds on 8 threads", rounds.load(Ordering::Relaxed));
    // What nobody has polled.
    let mut n = 1;
    while n > 0 {
        let mut events: [runtime_event; 64] = unsafe { std::mem::zeroed() };
        unsafe { runtime_engine_poll(e.engine, events.as_mut_ptr(), 64, &mut n, null_mut()) };
    }
    let session = e.session("Hello");
    assert_eq!(e.answer(session, 4, |_| {}).status, RUNTIME_OK);
}
