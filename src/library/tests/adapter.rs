//! Adapters that a model's Modelfile names, on their way into the library.

use super::*;

/// The files of a real adapter, written into `folder`.
fn write_adapter(folder: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/goldens/adapters/llama-q4");
    fs::create_dir_all(folder).expect("it can be written");
    for name in ["adapter_config.json", "adapters.safetensors"] {
        fs::copy(golden.join(name), folder.join(name)).expect("it can be written");
    }
}

#[test]
fn an_adapter_comes_along_and_stays_where_the_modelfile_says() {
    let bench = Bench::new();
    let folder = bench.mlx_folder("source");
    write_adapter(&folder.join("deep/lora"));
    let original = fs::read(folder.join("deep/lora/adapters.safetensors")).expect("it was written");
    let mut library = bench.open();
    let flat = ["adapter_config.json", "adapters.safetensors"];
    let mut import = |source: &str, name: &str, modelfile: Option<&str>| {
        if let Some(text) = modelfile {
            fs::write(bench.path(source).join("Modelfile"), text).expect("it can be written");
        }
        let report = bench.import(&mut library, source, Some(name)).expect("it is right");
        let text = fs::read_to_string(bench.path("models").join(name).join("Modelfile")).expect("it is there");
        let found: Vec<String> = report.entries.into_iter().map(|entry| entry.path).collect();
        (flat.iter().all(|name| found.iter().any(|path| path == name)), text)
    };
    assert_eq!(import("source", "none", Some("FROM .\n")), (false, "FROM .\n".into()));
    // An error of the Modelfile is told where the model is run.
    assert_eq!(import("source", "wrong", Some("FROM .\nADAPTER a\nX")), (false, "FROM .\nADAPTER a\nX".into()));
    let moved = "FROM .\nADAPTER adapters.safetensors\n# end\n";
    for (name, path) in [("a", "deep/lora"), ("b", "./deep/lora/"), ("c", "deep/lora/adapters.safetensors")] {
        let text = format!("FROM .\nADAPTER {path}\n# end\n");
        assert_eq!(import("source", name, Some(&text)), (true, moved.into()), "{path}");
    }
    let copied = fs::read(bench.path("models/a/adapters.safetensors")).expect("it came along");
    assert_eq!(copied, original);
    // A model that lists it, and one that has it beside its weights, keep their Modelfile.
    assert_eq!(import("models/a", "d", None), (true, moved.into()));
    write_adapter(&folder);
    for (name, path) in [("e", "."), ("f", "./adapters.safetensors")] {
        let text = format!("FROM .\nADAPTER {path}\n");
        assert_eq!(import("source", name, Some(&text)), (true, text.clone()));
    }
    // Beside the weights, a name like theirs would make it a part of them.
    fs::rename(folder.join("adapters.safetensors"), folder.join("deep/model-lora.safetensors")).expect("it is there");
    fs::rename(folder.join("adapter_config.json"), folder.join("deep/adapter_config.json")).expect("it is there");
    let text = "FROM .\nADAPTER deep/model-lora.safetensors\n# end\n";
    assert_eq!(import("source", "g", Some(text)), (true, moved.into()));
}

#[test]
fn an_adapter_that_cannot_come_along_is_refused() {
    let bench = Bench::new();
    let folder = bench.mlx_folder("source");
    write_adapter(&bench.path("outside"));
    write_adapter(&folder.join("lora"));
    let mut library = bench.open();
    let outside = bench.path("outside").display().to_string();
    let mut refusal = |path: &str| {
        fs::write(folder.join("Modelfile"), format!("FROM .\nADAPTER {path}\n")).expect("it can be written");
        bench.import(&mut library, "source", Some("tiny")).expect_err(path).to_string()
    };
    for path in ["../outside", outside.as_str(), "lora/../../outside", "lora\\x"] {
        let found = refusal(path);
        assert!(found.contains(&format!("adapter `{path}` isn't in the folder; copy it there")), "{found}");
    }
    let found = refusal("none");
    assert!(found.ends_with("its Modelfile's `ADAPTER`: the adapter has no `adapter_config.json`"), "{found}");
    let found = refusal("lora/other.safetensors");
    assert!(found.ends_with("its Modelfile's adapter `lora/other.safetensors` isn't there"), "{found}");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&outside, folder.join("link")).expect("it can be written");
        let found = refusal("link");
        assert!(found.contains("it is a link that leads out of the model's folder"), "{found}");
    }
    let config = folder.join("lora/adapter_config.json");
    let text = fs::read_to_string(&config).expect("it was written");
    fs::write(&config, text.replace("\"lora\"", "\"dora\"")).expect("it can be written");
    let found = refusal("lora");
    assert!(found.ends_with("`ADAPTER`: the adapter is of the type `dora`, which isn't supported"), "{found}");
    assert!(!bench.path("models/tiny").exists() && !bench.path("models/tiny.partial").exists());
}
