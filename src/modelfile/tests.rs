//! Tests of the Modelfile: good files, exact errors, the seed's wrong behaviours, printing, and hostile input.

use proptest::prelude::*;

use super::*;
use crate::hint::Hint as _;

fn parsed(text: &str) -> Parsed {
    Modelfile::parse(text).unwrap_or_else(|errors| panic!("{text:?}: {errors}"))
}

/// Keyword, argument and value of each instruction.
fn read(text: &str) -> Vec<(&'static str, String, String)> {
    let instructions = parsed(text).modelfile.instructions;
    instructions.into_iter().map(|it| (it.keyword.as_str(), it.argument, it.value)).collect()
}

#[test]
fn values_are_read_as_ollama_reads_them() {
    for (written, value) in [
        ("SYSTEM You are kind.", "You are kind."),
        ("system \t You are kind. \t ", "You are kind."),
        ("SyStEm a", "a"),
        ("SYSTEM a # b", "a # b"),
        ("SYSTEM # a", "# a"),
        ("SYSTEM 'a'", "'a'"),
        ("SYSTEM a \"b\"", "a \"b\""),
        ("SYSTEM \"\"", ""),
        ("SYSTEM \"\"\"\"\"\"", ""),
        ("SYSTEM \" a \"", " a "),
        ("SYSTEM \"a\" \t", "a"),
        ("SYSTEM \"a\nb\"", "a\nb"),
        ("SYSTEM \"a\r\n\r\nb\"", "a\r\n\r\nb"),
        ("SYSTEM \"\na\n\"", "\na\n"),
        ("SYSTEM \"say \"hi\" to me\"", "say \"hi\" to me"),
        ("SYSTEM \"\"\"\na \"b\"\n# c\nFROM d\n\"\"\"", "\na \"b\"\n# c\nFROM d\n"),
        ("SYSTEM \"\"\"\"a\"\"\"\"", "\"a\""),
        ("SYSTEM \"\"\"a\"\"\" b\"\"\"", "a\"\"\" b"),
        ("SYSTEM a\\nb", "a\\nb"),
        ("SYSTEM 你好👋", "你好👋"),
        ("  SYSTEM a", "a"),
        ("SYSTEM Assistant for messages", "Assistant for messages"),
        ("SYSTEM FROM here on, be kind", "FROM here on, be kind"),
        ("#\nSYSTEM a", "a"),
        ("#\rSYSTEM a", "a"),
        ("  # c\r\n\r\nSYSTEM a", "a"),
    ] {
        for text in
            [format!("FROM m\n{written}"), format!("FROM m\r\n{written}\r\n"), format!("FROM m\r{written}\r# end")]
        {
            assert_eq!(read(&text).last(), Some(&("SYSTEM", String::new(), value.to_owned())), "{text:?}");
        }
    }
}

#[test]
fn each_instruction_comes_to_its_value() {
    let text = "# a file\nFROM user/model\nLICENSE MIT\nLICENSE \"\"\"\nApache\n\"\"\"\nTEMPLATE {{ messages }}\nSYSTEM a\n\
        PARAMETER temperature \"0.5\"\nPARAMETER stop \"### User:\"\nPARAMETER stop <|end|>\nMESSAGE user hi\n\
        MESSAGE assistant \"\"\"ho\"\"\"\nREQUIRES 0.1.0\nRENDERER auto\nPARSER auto\n";
    let Parsed { modelfile, warnings } = parsed(text);
    assert_eq!(warnings, []);
    assert_eq!(modelfile.from(), &Source::Hub { org: "user".into(), name: "model".into() });
    assert_eq!(modelfile.licences(), ["MIT", "\nApache\n"]);
    assert_eq!(modelfile.template().as_deref(), Some("{{ messages }}"));
    assert_eq!(modelfile.system(), Some("a"));
    assert_eq!(modelfile.parameters().sampling.temperature, 0.5);
    assert_eq!(modelfile.parameters().sampling.stop, ["### User:", "<|end|>"]);
    assert_eq!(modelfile.messages(), [Message::new(Role::User, "hi"), Message::new(Role::Assistant, "ho")]);
    assert_eq!(modelfile.requires().map(|version| version.to_string()).as_deref(), Some("0.1.0"));
    assert!(modelfile.check_requires("0.1.0").is_ok() && modelfile.check_requires("1.0.0").is_ok());
    let errors = modelfile.check_requires("0.0.9").expect_err("it is older");
    assert_eq!(
        errors.to_string(),
        "line 14, column 10: this Modelfile needs Tiles 0.1.0 or newer; this is 0.0.9\n  14 | REQUIRES 0.1.0\n     |          ^^^^^"
    );
    assert!(modelfile.check_requires("new").is_err());
    let rows = modelfile.explain();
    let row = |name: &str| {
        let row = rows.iter().find(|row| row.name == name).expect(name);
        (row.value.as_str(), row.origin.as_str())
    };
    assert_eq!(row("from"), ("user/model", "line 2"));
    assert_eq!(row("message user"), ("hi", "line 12"));
    assert_eq!(row("temperature"), ("0.5", "line 9"));
    assert_eq!(row("top_k"), ("40", "default"));
    assert_eq!(row("stop"), ("\"### User:\" \"<|end|>\"", "lines 10, 11"));
}

#[test]
fn renderer_parser_and_identity_act() {
    let Parsed { modelfile, warnings } =
        parsed("FROM m\nRENDERER chatml\nPARSER harmony\nMIR \"mir:model.artm.gpt-oss:mlx-q4\"\n");
    assert_eq!(warnings, []);
    assert!(modelfile.template().is_some_and(|jinja| jinja.contains("<|im_start|>")));
    assert_eq!(modelfile.parser(), Form::Harmony);
    assert_eq!(modelfile.mir().map(ToString::to_string).as_deref(), Some("mir:model.art.gpt-oss:mlx-q4"));
    for form in Form::ALL {
        let Parsed { modelfile, .. } = parsed(&format!("FROM m\nRENDERER {0}\nPARSER {0}\n", form.as_str()));
        assert_eq!((modelfile.template().as_deref(), modelfile.parser()), (form.jinja(), form));
    }
    let Parsed { modelfile, .. } = parsed("FROM m\nTEMPLATE {{ messages }}\nRENDERER auto");
    assert_eq!(modelfile.template().as_deref(), Some("{{ messages }}"));
}

/// Each error as `line:column message`.
fn errors(text: &str) -> Vec<String> {
    let Diagnostics(list) = Modelfile::parse(text).expect_err(text);
    assert!(list.iter().all(|error| error.hint().is_some()));
    list.iter().map(|error| format!("{}:{} {}", error.line, error.column, error.message())).collect()
}

#[test]
fn errors_say_what_was_expected_where() {
    for (text, expected) in [
        ("", "1:1 the file has no `FROM`"),
        ("SYSTEM a\n", "2:1 the file has no `FROM`"),
        ("FROMx", "1:1 expected an instruction, found `FROMx`"),
        ("FROM=x", "1:1 expected an instruction, found `FROM=x`"),
        ("FORM x", "1:1 expected an instruction, found `FORM`"),
        ("FROM m\nhello world", "2:1 `hello` is not an instruction"),
        ("FROM m\n\"", "2:1 `\"` is not an instruction"),
        ("FROM", "1:5 expected a value after `FROM`, found the end of the file"),
        ("FROM \nSYSTEM a", "1:6 expected a value after `FROM`, found the end of the line"),
        ("FROM \"\"", "1:6 expected a model's name, `org/name` or path, found `\"\"`"),
        ("FROM m\nSYSTEM \"a", "2:8 the value that begins here is never closed: no line ends with `\"`"),
        ("FROM m\nSYSTEM \"", "2:8 the value that begins here is never closed: no line ends with `\"`"),
        ("FROM m\nSYSTEM \"\"\"a\"\"", "2:8 the value that begins here is never closed: no line ends with `\"\"\"`"),
        ("FROM m\nSYSTEM \"a\" b", "2:8 the value that begins here is never closed: no line ends with `\"`"),
        ("FROM m\nPARAMETER", "2:10 expected the name of a parameter, found the end of the file"),
        ("FROM m\nPARAMETER top_k", "2:16 expected a value after it, found the end of the file"),
        ("FROM m\nPARAMETER temprature 1", "2:11 `temprature` is not a parameter"),
        ("FROM m\nPARAMETER top_k 1.5", "2:17 `top_k` takes a whole number from 0 to 4294967295, not `1.5`"),
        ("FROM m\nPARAMETER top_k 1 2", "2:17 `top_k` takes a whole number from 0 to 4294967295, not `1 2`"),
        ("FROM m\nMESSAGE User hi", "2:9 expected `system`, `user` or `assistant`, found `User`"),
        ("FROM m\nMESSAGE user", "2:13 expected a text after it, found the end of the file"),
        ("FROM m\nREQUIRES new", "2:10 expected a version such as `0.1.0`, found `new`"),
        ("FROM m\nADAPTER", "2:8 expected a value after `ADAPTER`, found the end of the file"),
        ("FROM m\nADAPTER \"\"", "2:9 expected an adapter's folder or `.safetensors` file, found `\"\"`"),
        ("FROM m\nADAPTER a/b.GGUF", "2:9 an adapter in GGUF isn't supported"),
        ("FROM m\ndraft a", "2:1 `DRAFT` isn't supported yet"),
        (
            "FROM m\nMIR model.art.x:y",
            "2:5 model.art.x:y isn't of the form `mir:domain.architecture.series:compatibility`",
        ),
        (
            "FROM m\nMIR mir:model.art.x-20b",
            "2:5 the series `x-20b` has `20b` in it, which is a size or a minor version",
        ),
        ("FROM m\nINTENT a IMAGES USE b", "2:1 `INTENT` isn't supported yet"),
        ("FROM m\nPARSER autp", "2:8 expected `auto`, `chatml`, `harmony` or `passthrough`, found `autp`"),
        ("FROM m\nTEMPLATE a\nRENDERER chatml", "3:10 `TEMPLATE` and `RENDERER` both say how the prompt is made"),
        ("FROM m\nSYSTEM\u{a0}x", "2:1 expected an instruction, found `SYSTEM\u{a0}x`"),
        ("FROM m\nSYSTM \"\"\"\na\nFORM b\n\"\"\"\n# c", "2:1 expected an instruction, found `SYSTM`"),
        ("FROM m\nMESAGE user \"a\nb c\"\n", "2:1 expected an instruction, found `MESAGE`"),
        ("SYSTEM \"a\nFROM m", "1:8 the value that begins here is never closed: no line ends with `\"`"),
        ("FROM m\nTEMPLATE \"\"\"a\n{{ .Tools }}\"\"\"", "3:1 the template's `{{ .Tools }}` isn't supported"),
    ] {
        assert_eq!(errors(text), [expected], "{text:?}");
    }
}

#[test]
fn all_errors_are_listed_up_to_a_limit() {
    let text = "FROMM m\n\nSYSTEM a\nPARAMETER x 1\nDRAFT a\nPARAMETER top_p 2\nMESSAGE bot hi";
    let lines: Vec<_> = errors(text).iter().map(|error| error[..1].to_owned()).collect();
    assert_eq!(lines, ["1", "4", "5", "6", "7"]);
    assert_eq!(
        errors("DRAFT a\nx"),
        ["1:1 `DRAFT` isn't supported yet", "2:1 `x` is not an instruction", "2:2 the file has no `FROM`"]
    );
    let error = Modelfile::parse("FORM m").expect_err("a typing error");
    assert_eq!(error.0[0].near.as_deref(), Some("FROM"));
    assert_eq!(error.hint().as_deref(), Some("write `FROM`"));
    let many = errors(&"x\n".repeat(1000));
    assert_eq!(many.len(), DIAGNOSTICS_MAX);
    assert_eq!(many[99], "100:1 `x` is not an instruction (and there are more errors)");
    assert_eq!(errors(&("FROM m\n".to_owned() + &"x\n".repeat(100)))[99], "101:1 `x` is not an instruction");
}

#[test]
fn what_was_probably_not_meant_is_told() {
    let warnings = |text: &str| parsed(text).warnings.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        warnings("FROM a\nSYSTEM b\nFROM c\nSYSTEM d"),
        ["line 3: `FROM` replaces that of line 1", "line 4: `SYSTEM` replaces that of line 2"]
    );
    assert_eq!(parsed("FROM a\nFROM c").modelfile.from(), &Source::Name("c".into()));
    let text = "FROM a\nPARAMETER seed 1\nPARAMETER seed 2\nPARAMETER num_gpu 1\nPARAMETER stop a\nPARAMETER stop b";
    assert_eq!(
        warnings(text),
        [
            "line 3: `PARAMETER seed` replaces that of line 2",
            "line 4: `num_gpu` has no effect here: layers are not split between devices"
        ]
    );
    assert_eq!(
        warnings("FROM a\nPARAMETER stop \"a\" # b\nPARAMETER stop \"c\""),
        ["line 2: the value reaches to line 3, for a quote ends a value only at the end of a line"]
    );
}

#[test]
fn an_adapter_is_a_path_and_the_last_one_counts() {
    let Parsed { modelfile, warnings } = parsed("FROM m\nadapter ./a b\nADAPTER \"c/d.safetensors\"\n# e");
    assert_eq!(modelfile.adapter(), Some("c/d.safetensors"));
    assert_eq!(warnings[0].to_string(), "line 3: `ADAPTER` replaces that of line 2");
    let row = modelfile.explain().into_iter().find(|row| row.name == "adapter").expect("it is in force");
    assert_eq!((row.value.as_str(), row.origin.as_str()), ("c/d.safetensors", "line 3"));
    assert_eq!(modelfile.to_canonical(), "FROM m\nADAPTER ./a b\nADAPTER c/d.safetensors\n# e\n");
    let moved = modelfile.with_adapter("x").expect("it can be written");
    assert_eq!(moved, "FROM m\nadapter ./a b\nADAPTER x\n# e");
    assert_eq!(parsed("FROM m").modelfile.adapter(), None);
}

#[test]
fn a_new_system_changes_nothing_else() {
    for (before, system, after) in [
        ("FROM m\nSYSTEM a # b\n# end", "x", "FROM m\nSYSTEM x\n# end"),
        ("from m\r\n  system   \"\"\"a\r\nb\"\"\"  \r\n# c", "x\ny", "from m\r\n  system   \"x\ny\"  \r\n# c"),
        ("FROM m\nSYSTEM a\nSYSTEM b", "\"", "FROM m\nSYSTEM a\nSYSTEM \"\"\"\"\"\"\""),
        ("FROM m", "x", "FROM m\nSYSTEM x\n"),
        ("\u{feff}FROM m # c\r\n", "", "\u{feff}FROM m # c\r\nSYSTEM \"\"\r\n"),
        ("# c\nFROM \"m\"\n#", "x", "# c\nFROM \"m\"\n#\nSYSTEM x\n"),
    ] {
        let written = parsed(before).modelfile.with_system(system).expect("it can be written");
        assert_eq!(written, after);
        assert_eq!(parsed(&written).modelfile.system(), Some(system));
    }
    let modelfile = parsed("FROM m").modelfile;
    assert_eq!(modelfile.with_system("a\"\"\"\nb"), Err(UnprintableError));
}

#[test]
fn the_canonical_form_quotes_where_it_must() {
    let text = "# a\r\n\r\n\r\n#b\r\nfrom  m  \n\t# c \n\n\n\nsystem \"\"\"plain\"\"\"\nmessage user \" a\"\nmessage user \"\"\"a\n\"b\"\n\"\"\"\nparameter stop \"\"\"\"x\"\"\"\n\n# end\n\n";
    let printed = "# a\n\n#b\nFROM m\n# c\n\nSYSTEM plain\nMESSAGE user \" a\"\nMESSAGE user \"\"\"a\n\"b\"\n\"\"\"\nPARAMETER stop \"\"\"\"x\"\"\"\n\n# end\n";
    assert_eq!(parsed(text).modelfile.to_canonical(), printed);
    assert_eq!(parsed(printed).modelfile.to_canonical(), printed);
}

#[test]
fn bytes_are_utf8_or_utf16_with_a_mark() {
    let text = "\u{feff}FROM m\r\nSYSTEM 你好";
    for encoding in [Encoding::Utf8, Encoding::Utf16Le, Encoding::Utf16Be] {
        let modelfile = Modelfile::from_bytes(&encoding.encode(text)).expect("it is a Modelfile").modelfile;
        assert_eq!((modelfile.system(), modelfile.encoding(), modelfile.text()), (Some("你好"), encoding, text));
    }
    let errors = Modelfile::from_bytes(b"GGUF\xff").expect_err("no text");
    assert_eq!(errors.0[0].message(), "expected UTF-8 text, found the byte 0xff");
    assert!(Modelfile::parse(&"\n".repeat(MODELFILE_BYTES_MAX + 1)).is_err());
}

/// A value that the grammar can express, made of what matters to it.
fn value() -> impl Strategy<Value = String> {
    let part =
        prop_oneof!["[a-z]{1,3}", Just("\"".into()), Just("\"\"\"".into()), "[ \t\n\r#]{1,2}", Just("\u{a0}é".into())];
    proptest::collection::vec(part, 0..8)
        .prop_map(|parts: Vec<String>| parts.concat())
        .prop_filter("it can be written", |value| print::quote(value).is_ok())
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(values in proptest::collection::vec((0..4_u8, value()), 0..6)) {
        let mut text = "FROM m\n".to_owned();
        for (kind, value) in &values {
            let name = ["SYSTEM", "LICENSE", "MESSAGE user", "MESSAGE assistant"][usize::from(*kind)];
            text += &format!("{name} {}\n", print::quote(value).expect("it can be written"));
        }
        let modelfile = parsed(&text).modelfile;
        let read: Vec<_> = modelfile.instructions()[1..].iter().map(|it| it.value.clone()).collect();
        prop_assert_eq!(read, values.into_iter().map(|(_, value)| value).collect::<Vec<_>>());
        prop_assert_eq!(&modelfile.to_canonical(), &text);
        prop_assert_eq!(parsed(&modelfile.to_canonical()).modelfile, modelfile);
    }

    #[test]
    fn any_file_that_is_read_survives_printing(lines in proptest::collection::vec("(SYSTEM |LICENSE |#|MESSAGE user )?[a\" \\t\\r\"]{0,6}\"{0,4}", 0..6)) {
        if let Ok(Parsed { modelfile, .. }) = Modelfile::parse(&format!("FROM m\n{}", lines.join("\n"))) {
            let printed = modelfile.to_canonical();
            let comments = |text: &str| text.matches('#').count();
            prop_assert_eq!(comments(&printed), comments(modelfile.text()));
            let again = parsed(&printed).modelfile;
            prop_assert_eq!(again.to_canonical(), printed);
            prop_assert_eq!(again, modelfile);
        }
    }

    #[test]
    fn a_rewrite_keeps_the_bytes_around(before in "(# [a-z\"]{0,5}\r?\n){0,3}", old in value(), new in value(), after in "(\n *#[ -~]{0,9}){0,3}") {
        let old = print::quote(&old).expect("it can be written");
        let written = print::quote(&new).expect("it can be written");
        let file = |system: &str| format!("{before}FROM m\nsystem \t{system} {after}");
        prop_assert_eq!(parsed(&file(&old)).modelfile.with_system(&new), Ok(file(&written)));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,60}") {
        let _ = Modelfile::from_bytes(&bytes).map_err(|errors| errors.to_string());
        let _ = Modelfile::parse(&text).map_err(|errors| errors.to_string());
        let _ = Modelfile::parse(&format!("FROM m\nTEMPLATE {{{{ .System }}}}{text}")).map_err(|errors| errors.to_string());
    }
}
