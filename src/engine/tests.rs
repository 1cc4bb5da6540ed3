//! The loop, over a checkpoint whose answers are scripted.

use super::models::AdapterFiles;
use super::test_model::{self, CHATML, IM_END, THINK, THINK_END, saying};
use super::*;
use crate::message::Role;
use crate::test_folder::TestFolder;
use crate::time::{FixedClock, Timestamp};

pub(super) fn options(num_ctx: usize) -> EngineOptions {
    let load = LoadOptions { num_ctx, ..LoadOptions::default() };
    EngineOptions { load, clock: Arc::new(FixedClock(Timestamp::from_ms(0))) }
}

fn engine(template: &str, table: &[(u32, u32)], num_ctx: usize) -> (TestFolder, Engine) {
    let (folder, verified) = test_model::folder(template, table);
    let engine = Engine::load(&verified, &options(num_ctx), &mut |_| ControlFlow::Continue(()));
    (folder, engine.expect("it loads"))
}

pub(super) fn request(messages: &[(Role, &str)]) -> Request {
    Request {
        messages: messages.iter().map(|(role, content)| Message::new(*role, *content)).collect(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        ..Request::default()
    }
}

fn asking(text: &str) -> Request {
    request(&[(Role::User, text)])
}

fn answer(engine: &mut Engine, request: &Request) -> (Completion, Vec<Piece>) {
    let mut pieces = Vec::new();
    let completion = engine.generate(request, &mut |piece| {
        pieces.push(piece);
        ControlFlow::Continue(())
    });
    (completion.expect("it answers"), pieces)
}

#[test]
fn an_answer_ends_as_it_should() {
    let stopping = |stop: &[&str], num_predict: Option<u32>| Sampling {
        stop: stop.iter().map(|&stop| stop.to_owned()).collect(),
        num_predict,
        ..asking("").sampling
    };
    for (sampling, text, reason, output_tokens) in [
        (stopping(&[], None), "Hé, wr€d!", FinishReason::Stop, 12),
        (stopping(&["r€"], None), "Hé, w", FinishReason::Stop, 10),
        (stopping(&["r€x", "d!?"], None), "Hé, wr€d!", FinishReason::Stop, 12),
        (stopping(&[], Some(4)), "Hé,", FinishReason::Length, 4),
        (stopping(&[], Some(2)), "H\u{fffd}", FinishReason::Length, 2),
        (stopping(&[", wx"], Some(6)), "Hé, w", FinishReason::Length, 6),
        (stopping(&[], Some(0)), "", FinishReason::Length, 0),
        (stopping(&[], Some(12)), "Hé, wr€d!", FinishReason::Length, 12),
    ] {
        let (_folder, mut engine) = engine(CHATML, &saying("Hé, wr€d!"), 512);
        let request = Request { sampling, ..asking("Say it.") };
        let (completion, pieces) = answer(&mut engine, &request);
        let what = format!("{:?}", request.sampling);
        assert_eq!((completion.text.as_str(), completion.finish_reason), (text, reason), "{what}");
        assert_eq!(completion.usage.output_tokens, output_tokens, "{what}");
        let streamed: String = pieces
            .into_iter()
            .map(|piece| match piece {
                Piece::Text(text) => text,
                Piece::Reasoning(_) => panic!("nothing was thought"),
            })
            .collect();
        assert_eq!(streamed, text, "{what}");
    }
}

#[test]
fn the_answer_ends_where_the_context_does() {
    let (_folder, mut engine) = engine(CHATML, &saying("abcdefghijklmnopqrstuvwxyz"), 48);
    let (completion, _) = answer(&mut engine, &asking("0123456789ABC"));
    assert_eq!(completion.finish_reason, FinishReason::Length);
    assert_eq!(completion.usage.input_tokens + completion.usage.output_tokens, 49, "the last token needs no place");
    // As many tokens less as there are places less.
    let smaller = Request { num_ctx: Some(44), ..asking("0123456789ABC") };
    assert_eq!(answer(&mut engine, &smaller).0.text.len() + 4, completion.text.len());
    let larger = Request { num_ctx: Some(10_000), ..asking("0123456789ABC") };
    assert_eq!(answer(&mut engine, &larger).0.text, completion.text);
}

#[test]
fn a_caller_that_has_enough_gets_what_there_is() {
    let (_folder, mut engine) = engine(CHATML, &saying("abcdef"), 512);
    let mut count = 0;
    let completion = engine.generate(&asking("x"), &mut |_| {
        count += 1;
        if count == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let completion = completion.expect("it answers");
    assert_eq!((completion.text.as_str(), completion.finish_reason), ("abc", FinishReason::Cancelled));
    assert_eq!(count, 3);
    // Cancelled before the first token: nothing, and the engine is as good as new.
    let none = engine.generate_until(&asking("another"), &|| true, &mut |_| ControlFlow::Continue(()));
    let none = none.expect("it ends");
    assert_eq!((none.text.as_str(), none.finish_reason, none.usage.output_tokens), ("", FinishReason::Cancelled, 0));
    assert_eq!(answer(&mut engine, &asking("another")).0.text, "abcdef");
}

#[test]
fn only_what_is_new_is_computed() {
    let (_folder, mut engine) = engine(CHATML, &saying("ok"), 512);
    let first = answer(&mut engine, &asking("one")).0.usage;
    assert_eq!(first.cached_tokens, 0);
    // The same again: all but the last token, which must be computed for its logits.
    assert_eq!(answer(&mut engine, &asking("one")).0.usage.cached_tokens, first.input_tokens - 1);
    let turns = [(Role::User, "one"), (Role::Assistant, "ok"), (Role::User, "two")];
    let second = answer(&mut engine, &request(&turns)).0.usage;
    assert_eq!(second.cached_tokens, first.input_tokens + 2, "the prompt before and both bytes of its answer");
    // Undone: the first turn again with another end.
    let other = answer(&mut engine, &asking("once")).0.usage;
    assert_eq!(other.cached_tokens, "<user\non".len());
    assert_eq!(answer(&mut engine, &request(&turns)).0.text, "ok");
}

#[test]
fn oldest_turns_are_dropped_whole() {
    let (_folder, mut engine) = engine(CHATML, &saying("ok"), 512);
    let old = "x".repeat(40);
    let turns = [
        (Role::System, "Be brief."),
        (Role::User, old.as_str()),
        (Role::Assistant, "a1"),
        (Role::User, old.as_str()),
        (Role::Assistant, "a2"),
        (Role::User, "now"),
    ];
    // The tokens of each message with its four of ChatML: 19, 48, 15, 48, 15, 11; 11 open the answer, for which a
    // quarter of the context is kept free.
    for (num_ctx, num_keep, is_in) in [
        (512, 0, [true, true, true, true, true, true]),
        (222, 0, [true, true, true, true, true, true]),
        (221, 0, [true, false, false, true, true, true]),
        (221, 82, [true, true, true, false, false, true]),
        (221, 81, [true, false, false, true, true, true]),
        (138, 0, [true, false, false, true, true, true]),
        (137, 0, [true, false, false, false, false, true]),
        (137, 500, [true, false, false, false, false, true]),
        (42, 0, [true, false, false, false, false, true]),
    ] {
        let request = Request { num_ctx: Some(num_ctx), num_keep, ..request(&turns) };
        let fit = engine.fit(&request).expect("it fits");
        assert_eq!((fit.is_in.as_slice(), fit.num_ctx), (&is_in[..], num_ctx), "{num_ctx} {num_keep}");
        let completion = answer(&mut engine, &request).0;
        assert_eq!(completion.dropped_messages, is_in.iter().filter(|is_in| !**is_in).count());
        assert_eq!(
            (completion.usage.input_tokens, fit.dropped_messages),
            (fit.prompt_tokens, completion.dropped_messages)
        );
    }
    let small = Request { num_ctx: Some(41), ..request(&turns) };
    let error = engine.fit(&small).expect_err("it is too long");
    assert_eq!(error.to_string(), "the message has 41 tokens with its instructions, but the context holds only 41");
    assert_eq!(error.hint().as_deref(), Some("shorten the message, or raise `num_ctx`"));
}

#[test]
fn of_many_turns_the_newest_that_fit_are_kept() {
    let (_folder, mut engine) = engine(CHATML, &saying("ok"), 512);
    let mut turns = Vec::new();
    for turn_count in 1..80 {
        turns.extend([(Role::User, "0123456789"), (Role::Assistant, "a")]);
        let all: Vec<_> = turns.iter().copied().chain([(Role::User, "now")]).collect();
        let fit = engine.fit(&request(&all)).expect("it fits");
        // 18 and 14 tokens a turn, 11 for the newest message, 11 open the answer, 128 of 512 are kept free.
        let kept = turn_count.min((512 - 128 - 22) / 32);
        assert_eq!(fit.dropped_messages, 2 * (turn_count - kept), "{turn_count}");
        assert_eq!(fit.prompt_tokens, 22 + 32 * kept);
        assert!(fit.is_in.is_sorted(), "only the oldest are dropped");
    }
}

#[test]
fn thoughts_are_a_stream_of_their_own() {
    let table: Vec<(u32, u32)> = [u32::from(b'\n'), THINK]
        .into_iter()
        .chain("hm".bytes().map(u32::from))
        .chain([THINK_END])
        .chain("Yes".bytes().map(u32::from))
        .chain([IM_END])
        .collect::<Vec<_>>()
        .windows(2)
        .map(|w| (w[0], w[1]))
        .collect();
    let thinking = format!("{CHATML}{{#- </think> -#}}");
    let (_folder, mut engine_thinks) = engine(&thinking, &table, 512);
    let (completion, pieces) = answer(&mut engine_thinks, &asking("?"));
    assert_eq!((completion.text.as_str(), completion.reasoning.as_deref()), ("Yes", Some("hm")));
    assert_eq!(pieces.first(), Some(&Piece::Reasoning("h".into())));
    // A stop string counts in the answer only; a template given with the request is the one that counts.
    let sampling = Sampling { stop: vec!["m".into(), "s".into()], ..asking("").sampling };
    let (completion, _) = answer(&mut engine_thinks, &Request { sampling, ..asking("?") });
    assert_eq!((completion.text.as_str(), completion.reasoning.as_deref()), ("Ye", Some("hm")));
    let plain = Request { template: Some("{{ messages[0].content }}\n\n".into()), ..asking("?") };
    let (completion, _) = answer(&mut engine_thinks, &plain);
    assert_eq!((completion.text.as_str(), completion.reasoning), ("<think>hm</think>Yes", None));
    assert_eq!(completion.usage.input_tokens, 2);
}

#[test]
fn seeds_repeat_and_are_told() {
    let table: Vec<(u32, u32)> = (97..123).flat_map(|a| (97..123).map(move |b| (a, b))).chain([(10, 97)]).collect();
    let (_folder, mut engine) = engine(CHATML, &table, 512);
    let sampling = Sampling { num_predict: Some(30), temperature: 1.0, top_k: 26, ..Sampling::default() };
    let drawn = answer(&mut engine, &Request { sampling: sampling.clone(), ..asking("?") }).0;
    let again = Sampling { seed: Some(drawn.seed), ..sampling.clone() };
    assert_eq!(answer(&mut engine, &Request { sampling: again, ..asking("?") }).0.text, drawn.text);
    let other = Sampling { seed: Some(drawn.seed ^ 1), ..sampling };
    assert_ne!(answer(&mut engine, &Request { sampling: other, ..asking("?") }).0.text, drawn.text);
}

#[test]
fn what_is_wrong_is_said() {
    let (_folder, mut engine) = engine(CHATML, &saying("ok"), 512);
    let refusing = Request { template: Some("{{ raise_exception('no') }}".into()), ..asking("?") };
    let error = engine.generate(&refusing, &mut |_| ControlFlow::Continue(())).expect_err("it refuses");
    assert_eq!(error.to_string(), "the chat template refuses this conversation: no (line 1)");
    let empty = Request { template: Some("{# nothing #}".into()), ..asking("?") };
    let error = engine.generate(&empty, &mut |_| ControlFlow::Continue(())).expect_err("there is nothing to say");
    assert_eq!(error.to_string(), "the chat template makes an empty prompt of this conversation");
    assert_eq!(answer(&mut engine, &asking("?")).0.text, "ok");
    assert_eq!(engine.count_tokens("<|im_end|>").expect("it counts"), 10);
}

/// An engine whose weights are vouched for, as those of a bundle are.
fn vouched(seed: u8) -> (TestFolder, Engine) {
    vouched_with(seed, &|_| None)
}

/// The same with the adapter that `adapter` takes from its folder, in which there is one.
fn vouched_with(seed: u8, adapter: &dyn Fn(&VerifiedFolder) -> Option<AdapterFiles>) -> (TestFolder, Engine) {
    let (folder, verified) = test_model::folder(CHATML, &saying("ok"));
    test_model::write_adapter(folder.path());
    std::fs::write(folder.path().join("note"), [seed]).expect("target can be written");
    let entries = verified.names().expect("it can be listed").into_iter().map(|name| {
        let bytes = std::fs::read(folder.path().join(&name)).expect("it is there");
        crate::manifest::Entry {
            path: name,
            size: bytes.len() as u64,
            sha256: Sha256Digest::of(&bytes),
            role: crate::manifest::FileRole::Model,
            chunks_sha256: None,
        }
    });
    let verified = VerifiedFolder::listed(folder.path(), entries);
    let mut options = options(512);
    options.load.adapter = adapter(&verified);
    let engine = Engine::load(&verified, &options, &mut |_| ControlFlow::Continue(()));
    (folder, engine.expect("it loads"))
}

/// An adapter changes what keys and values are.
#[test]
fn a_state_belongs_to_the_adapter_too() {
    let listed = |path: &'static str| move |folder: &VerifiedFolder| Some(AdapterFiles::new(folder.clone(), path));
    let (_plain, plain) = vouched(1);
    let (_adapted, mut adapted) = vouched_with(1, &listed("adapters.safetensors"));
    let (_same, mut same) = vouched_with(1, &listed("./adapters.safetensors"));
    assert!(plain.origin().is_some() && adapted.origin().is_some());
    assert_ne!(plain.origin(), adapted.origin());
    answer(&mut adapted, &asking("one two"));
    let state = adapted.state(&asking("one two")).expect("it renders").expect("it holds something");
    let (_fresh, mut fresh) = vouched(1);
    assert!(!fresh.take_up(&state), "without the adapter");
    assert!(same.take_up(&state));
    let unlisted = |folder: &VerifiedFolder| Some(AdapterFiles::new(VerifiedFolder::unlisted(folder.path()), ""));
    let (_unvouched, unvouched) = vouched_with(1, &unlisted);
    assert_eq!(unvouched.origin(), None, "nothing vouches for the adapter");
}

#[test]
fn a_state_is_taken_up_where_it_belongs() {
    let (_one, mut engine) = vouched(1);
    let (_same, mut again) = vouched(1);
    let (_other, mut other) = vouched(2);
    let first = [(Role::User, "one two three four")];
    answer(&mut engine, &request(&first));
    let after = [first[0], (Role::Assistant, "ok")];
    let state = engine.state(&request(&after)).expect("it renders").expect("it holds something");
    assert!(state.tokens.len() > 20);
    let next = request(&[first[0], (Role::Assistant, "ok"), (Role::User, "five")]);
    let fresh = answer(&mut other, &next).0;
    assert_eq!(fresh.usage.cached_tokens, 0);
    assert!(!other.take_up(&state), "of other weights");
    assert!(again.take_up(&state));
    let resumed = answer(&mut again, &next).0;
    assert_eq!((&resumed.text, resumed.usage.cached_tokens), (&fresh.text, state.tokens.len()));
    assert!(!again.take_up(&state), "it says less than what the engine holds");
    // Of what was taken back, nothing is in a state.
    let taken_back = engine.state(&request(&[(Role::User, "something else")])).expect("it renders");
    assert!(taken_back.is_some_and(|state| state.tokens.len() < 20));

    // A state that doesn't fit the model leaves the engine as good as new.
    let spoil = |change: &dyn Fn(&mut PrefixState)| {
        let mut state = state.clone();
        change(&mut state);
        state
    };
    for (what, spoilt) in [
        ("a layer less", spoil(&|state| drop(state.layers.pop()))),
        ("a token more", spoil(&|state| state.tokens.push(1))),
        ("a token that isn't", spoil(&|state| state.tokens[0] = 9_999)),
        ("another width", spoil(&|state| state.layers[0].width /= 2)),
        ("another type", spoil(&|state| state.layers[0].dtype = checkpoint::Dtype::F32)),
        ("keys cut off", spoil(&|state| state.layers[0].keys.truncate(7))),
        ("positions missing", spoil(&|state| state.layers[0].first = 1)),
        ("far too long", spoil(&|state| state.tokens.resize(5_000, 1))),
    ] {
        let (_folder, mut engine) = vouched(1);
        assert!(!engine.take_up(&spoilt), "{what}");
        let found = answer(&mut engine, &next).0;
        assert_eq!((&found.text, found.usage.cached_tokens), (&fresh.text, 0), "{what}");
    }
}

#[test]
fn conversations_share_their_opening() {
    let (_folder, mut engine) = vouched(1);
    let talk = |text| request(&[(Role::System, "Be brief."), (Role::User, text)]);
    let opening = engine.opening(&talk("hello")).expect("it renders");
    assert_eq!(opening, engine.opening(&talk("Other words")).expect("it renders"));
    answer(&mut engine, &talk("hello"));
    let state = engine.state(&talk("hello")).expect("it renders").and_then(|state| state.truncated(opening.len()));
    let state = state.expect("no layer has a window");
    let (_again, mut again) = vouched(1);
    assert!(again.take_up(&state));
    assert_eq!(answer(&mut again, &talk("Other words")).0.usage.cached_tokens, opening.len());
}

/// Whatever is drafted, an answer is what it would have been: sampled or not, cut by a stop string or a limit.
#[test]
fn drafts_change_no_answer() {
    // Every byte leads to the next, so a text that repeats itself is drafted rightly; the prompt's own repetitions wrongly.
    let table: Vec<(u32, u32)> =
        saying("abcdefghij").into_iter().map(|(from, to)| (from, if to == IM_END { 97 } else { to })).collect();
    let prompt = "abcdefghij abcdxyz abcdxyz ";
    let mut drafted = 0;
    for (temperature, seed) in [(0.0, 1), (0.8, 1), (0.8, 2), (1.5, 3)] {
        for (stop, num_predict, num_ctx) in
            [("", 60, 512), ("ghijabc", 200, 512), ("", 500, 90), ("", 1, 512), ("", 2, 512)]
        {
            let sampling = Sampling {
                temperature,
                seed: Some(seed),
                num_predict: Some(num_predict),
                stop: if stop.is_empty() { Vec::new() } else { vec![stop.into()] },
                ..Sampling::default()
            };
            let asked = Request { sampling, ..asking(prompt) };
            let (_one, mut plain) = engine(CHATML, &table, num_ctx);
            let (_other, mut drafting) = engine(CHATML, &table, num_ctx);
            let expected = answer(&mut plain, &Request { speculates: Some(false), ..asked.clone() });
            let found = answer(&mut drafting, &asked);
            let what = format!("{temperature} {stop:?} {num_predict} {num_ctx}");
            assert_eq!((&found.0.text, found.0.finish_reason), (&expected.0.text, expected.0.finish_reason), "{what}");
            let text = |pieces: &[Piece]| pieces.iter().map(|piece| format!("{piece:?}")).collect::<String>();
            assert_eq!(text(&found.1), text(&expected.1), "{what}");
            assert_eq!(drafting.cached, plain.cached, "{what}");
            assert_eq!(drafting.model.len(), drafting.cached.len(), "{what}");
            assert_eq!(expected.0.usage.drafted_tokens, 0);
            drafted += found.0.usage.accepted_tokens;
            // And the next turn goes on from there alike.
            let next = asking("something else");
            assert_eq!(answer(&mut drafting, &next).0.text, answer(&mut plain, &next).0.text, "{what}");
        }
    }
    assert!(drafted > 200, "{drafted}");
}
