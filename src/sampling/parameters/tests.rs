//! Tests of the parameters: each row's borders, spellings, what they change, and the exact errors.

use super::*;

/// The defaults with one field changed.
fn with(change: impl FnOnce(&mut Parameters)) -> Parameters {
    let mut parameters = Parameters::default();
    change(&mut parameters);
    parameters
}

#[test]
fn each_parameter_changes_its_own_field() {
    #[track_caller]
    fn check(name: &str, value: &str, expected: impl FnOnce(&mut Parameters)) {
        let mut parameters = Parameters::default();
        assert_eq!(parameters.set(name, value), Ok(Effect::Acts), "{name} {value}");
        assert_eq!(parameters, with(expected), "{name} {value}");
    }
    check("temperature", "0", |p| p.sampling.temperature = 0.0);
    check("temperature", "1e1", |p| p.sampling.temperature = 10.0);
    check("top_k", "0", |p| p.sampling.top_k = 0);
    check("top_k", "4294967295", |p| p.sampling.top_k = u32::MAX);
    check("top_p", "0.5", |p| p.sampling.top_p = 0.5);
    check("min_p", ".05", |p| p.sampling.min_p = 0.05);
    check("typical_p", "0.25", |p| p.sampling.typical_p = 0.25);
    check("repeat_last_n", "-1", |p| p.sampling.repeat_last_n = -1);
    check("repeat_last_n", "2147483647", |p| p.sampling.repeat_last_n = i32::MAX);
    check("repeat_penalty", "1.1", |p| p.sampling.repeat_penalty = 1.1);
    check("presence_penalty", "-2", |p| p.sampling.presence_penalty = -2.0);
    check("frequency_penalty", "2", |p| p.sampling.frequency_penalty = 2.0);
    check("seed", "0", |p| p.sampling.seed = Some(0));
    check("seed", "18446744073709551615", |p| p.sampling.seed = Some(u64::MAX));
    check("num_predict", "128", |p| p.sampling.num_predict = Some(128));
    check("stop", "### User: ", |p| p.sampling.stop = vec!["### User: ".into()]);
    check("num_ctx", "4096", |p| p.num_ctx = Some(4096));
    check("num_keep", "24", |p| p.num_keep = 24);
    check("num_batch", "512", |p| p.num_batch = Some(512));
    check("num_thread", "2", |p| p.num_thread = Some(2));
}

#[test]
fn some_values_give_the_choice_back() {
    let mut parameters = Parameters::default();
    for (name, set, unset) in [("seed", "7", "-1"), ("num_predict", "7", "-1"), ("num_thread", "7", "0")] {
        assert_eq!(parameters.set(name, set), Ok(Effect::Acts));
        assert_ne!(parameters, Parameters::default());
        assert_eq!(parameters.set(name, unset), Ok(Effect::Acts));
        assert_eq!(parameters, Parameters::default());
    }
}

#[test]
fn wrong_values_are_refused_and_change_nothing() {
    #[track_caller]
    fn check(name: &str, value: &str, message: &str, hint: &str) {
        let mut parameters = Parameters::default();
        let error = parameters.set(name, value).expect_err(value);
        assert_eq!((error.to_string(), error.hint()), (message.to_owned(), Some(hint.to_owned())));
        assert_eq!(parameters, Parameters::default());
    }
    let kind = "a number from 0 to 10";
    for value in ["hot", "", "-0.1", "10.001", "NaN", "inf", "0,5", "0.5 "] {
        let message = format!("`temperature` takes {kind}, not `{value}`");
        check("temperature", value, &message, &format!("give `temperature` {kind}"));
    }
    let kind = "a whole number from 0 to 4294967295";
    for value in ["-1", "4294967296", "40.0", "0x10", "99999999999999999999999999999999999999999999"] {
        let message = format!("`top_k` takes {kind}, not `{value}`");
        check("top_k", value, &message, &format!("give `top_k` {kind}"));
    }
    let kind = "a number above 0 up to 10";
    check(
        "repeat_penalty",
        "0",
        &format!("`repeat_penalty` takes {kind}, not `0`"),
        &format!("give `repeat_penalty` {kind}"),
    );
    let kind = "a text of 1 to 1024 bytes";
    check("stop", "", &format!("`stop` takes {kind}, not ``"), &format!("give `stop` {kind}"));
    let (long, shown) = ("x".repeat(1025), "x".repeat(48) + "…");
    check("stop", &long, &format!("`stop` takes {kind}, not `{shown}`"), &format!("give `stop` {kind}"));
    let kind = "a whole number from 1 to 16777216";
    check("num_ctx", "0", &format!("`num_ctx` takes {kind}, not `0`"), &format!("give `num_ctx` {kind}"));
    check("use_mmap", "yes", "`use_mmap` takes `true` or `false`, not `yes`", "give `use_mmap` `true` or `false`");
    check("temprature", "1", "`temprature` is not a parameter", "write `temperature`");
    check("Temperature", "1", "`Temperature` is not a parameter", "write `temperature`");
    check("numctx", "1", "`numctx` is not a parameter", "write `num_ctx`");
    check(
        "\u{1b}]0;x",
        "1",
        "`\u{fffd}]0;x` is not a parameter",
        "use one of temperature, top_k, top_p, min_p, typical_p, repeat_last_n, repeat_penalty, presence_penalty, \
         frequency_penalty, seed, num_predict, stop, num_ctx, num_keep, num_batch, num_thread",
    );
    let hint = ParameterError::Unknown { name: String::new(), nearest: None }.hint().expect("it has a hint");
    check(&"n".repeat(100_000), "1", &format!("`{}…` is not a parameter", "n".repeat(48)), &hint);
}

#[test]
fn borders_are_in_and_what_lies_beyond_is_out() {
    for row in PARAMETERS {
        let (inside, outside) = match row.kind {
            Kind::Whole { min, max, .. } => {
                (vec![min.to_string(), max.to_string()], vec![(min - 1).to_string(), (max + 1).to_string()])
            }
            Kind::Decimal { min, min_allowed, max, .. } => {
                let mut inside = vec![max.to_string()];
                let mut outside = vec![max.next_up().to_string(), min.next_down().to_string()];
                match min_allowed {
                    true => inside.push(min.to_string()),
                    false => outside.push(min.to_string()),
                }
                (inside, outside)
            }
            Kind::Switch => (vec!["true".into(), "F".into()], vec!["".into(), "tRUE".into()]),
            Kind::StopText => (vec!["x".repeat(STOP_BYTES_MAX)], vec!["x".repeat(STOP_BYTES_MAX + 1)]),
        };
        for value in inside {
            assert!(Parameters::default().set(row.name, &value).is_ok(), "{} {value}", row.name);
        }
        for value in outside {
            assert!(Parameters::default().set(row.name, &value).is_err(), "{} {value}", row.name);
        }
    }
}

#[test]
fn parameters_of_other_programs_are_named_as_idle() {
    let idle: Vec<_> = PARAMETERS.iter().filter(|row| !row.acts()).map(|row| row.name).collect();
    assert_eq!(
        idle.join(" "),
        "num_gpu main_gpu use_mmap draft_num_predict penalize_newline low_vram f16_kv logits_all vocab_only use_mlock \
         mirostat mirostat_tau mirostat_eta"
    );
    let mut parameters = Parameters::default();
    let warning = "`num_gpu` has no effect here: layers are not split between devices".to_owned();
    assert_eq!(parameters.set("num_gpu", "1"), Ok(Effect::NoEffectHere { warning }));
    assert_eq!(parameters, Parameters::default());
}

#[test]
fn stop_texts_add_up_to_a_limit() {
    let mut parameters = Parameters::default();
    for text in ["a", "b", "a"] {
        assert_eq!(parameters.set("stop", text), Ok(Effect::Acts));
    }
    assert_eq!(parameters.sampling.stop, ["a", "b"]);
    for idx in 2..STOP_TEXTS_MAX {
        assert_eq!(parameters.set("stop", &idx.to_string()), Ok(Effect::Acts));
    }
    let error = parameters.set("stop", "one more").expect_err("one too many");
    assert_eq!(error.to_string(), "there are already 64 stop texts");
    assert_eq!(parameters.set("stop", "a"), Ok(Effect::Acts));
}

#[test]
fn assignments_split_at_the_first_sign() {
    let mut parameters = Parameters::default();
    assert_eq!(parameters.set_assignment("stop==b="), Ok(Effect::Acts));
    assert_eq!(parameters.sampling.stop, ["=b="]);
    let error = parameters.set_assignment("seed 1").expect_err("no sign");
    assert_eq!(error.to_string(), "`seed 1` is not NAME=VALUE");
    assert_eq!(error.hint().as_deref(), Some("write it as `temperature=0.2`"));
}

#[test]
fn values_are_shown_and_names_are_unique() {
    let mut parameters = Parameters::default();
    let show = |parameters: &Parameters, name| (Parameter::named(name).expect("it is in the table").show)(parameters);
    for (name, value, before) in [
        ("temperature", "0.5", "0.8"),
        ("top_k", "7", "40"),
        ("top_p", "0.5", "0.9"),
        ("min_p", "0.5", "0"),
        ("typical_p", "0.5", "1"),
        ("repeat_last_n", "7", "64"),
        ("repeat_penalty", "1.5", "1"),
        ("presence_penalty", "0.5", "0"),
        ("frequency_penalty", "0.5", "0"),
        ("seed", "7", "drawn anew and shown"),
        ("num_predict", "7", "until the model stops"),
        ("num_ctx", "7", "the model's, bounded by memory"),
        ("num_keep", "7", "0"),
        ("num_batch", "7", "chosen by the engine"),
        ("num_thread", "7", "chosen by the engine"),
    ] {
        assert_eq!(show(&parameters, name), before);
        assert_eq!(parameters.set(name, value), Ok(Effect::Acts));
        assert_eq!(show(&parameters, name), value);
    }
    parameters.sampling.stop = vec!["a b".into(), "\n".into()];
    assert_eq!(show(&parameters, "stop"), r#""a b" "\n""#);
    assert_eq!(parameters.rows().len(), 16);
    assert!(parameters.rows().contains(&("num_ctx", "7".to_owned())));
    let names: std::collections::HashSet<_> = PARAMETERS.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), PARAMETERS.len());
}
