use super::*;

fn wrong(text: &str) -> String {
    format!("{:#}", SettingsFile::parse(text).expect_err(text))
}

fn arguments(text: &str, command: Configurable) -> Vec<String> {
    let file = SettingsFile::parse(text).unwrap();
    file.arguments(command, |_| true).map(String::from).collect()
}

#[test]
fn keys_of_a_section_win_over_keys_at_the_top_which_are_for_both_commands() {
    let text = r#"
        namespace = "blue"
        discovery = "etcd://a:2379"
        log_json = true
        [serve]
        namespace = "green"
        http_threads = 4
        discovery = ["etcd://a:2379", "static://b:1"]
        [worker]
        label = ["zone=a", "gpu=h100"]
        speedup = 2.5
    "#;
    assert_eq!(
        arguments(text, Configurable::Serve),
        [
            "--discovery=etcd://a:2379",
            "--discovery=static://b:1",
            "--http-threads=4",
            "--log-json",
            "--namespace=green"
        ]
    );
    let worker = arguments(text, Configurable::Worker);
    for expected in [
        "--namespace=blue",
        "--discovery=etcd://a:2379",
        "--label=zone=a",
        "--label=gpu=h100",
        "--speedup=2.5",
    ] {
        assert!(
            worker.iter().any(|argument| argument == expected),
            "{expected} in {worker:?}"
        );
    }
}

#[test]
fn a_wrong_file_is_refused_with_what_would_be_right() {
    for (text, words) in [
        ("namespce = 'x'", &["namespce", "did you mean namespace?"][..]),
        ("[serve]\nhtpp = 'x'", &["[serve]", "htpp", "did you mean http?"]),
        ("[serve]\nengine = 'sim'", &["[serve]", "engine is no setting"]),
        ("[srve]\nhttp = 'x'", &["srve", "did you mean serve?"]),
        ("zzz = 1", &["zzz", "config example"]),
        ("[serve]\nhttp = 'nowhere'", &["[serve] http", "nowhere"]),
        ("[serve]\nhttp_threads = 0", &["http_threads", "0"]),
        ("[serve]\nhttp = ['a', 'b']", &["http takes one value"]),
        ("log_json = 'yes'", &["log_json", "true or false"]),
        ("serve = 1", &["[serve]"]),
        ("a = 1\nb = = 2", &["line 2"]),
        ("config = 'x'", &["config is no setting"]),
    ] {
        let message = wrong(text);
        for word in words {
            assert!(message.contains(word), "{word:?} in {message:?}");
        }
        assert!(!message.contains('\n'), "one line: {message:?}");
    }
}

#[test]
fn the_example_names_every_setting_and_is_a_right_file() {
    let text = show::example_text().unwrap();
    for command in Configurable::ALL {
        assert!(
            arguments(&text, command).is_empty(),
            "the example changes nothing"
        );
        for key in command.settings().keys() {
            assert!(text.contains(&format!("\n#{key} = ")), "{key}");
        }
    }
    // It is right too with the defaults no longer commented out.
    let is_default = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    let enabled: Vec<String> = text
        .lines()
        .filter(|line| is_default(line) || line.starts_with('['))
        .filter(|line| !line.contains("= \"") || line.contains("127.0.0.1"))
        .filter(|line| !line.contains("[\""))
        .map(|line| line.trim_start_matches('#').to_owned())
        .collect();
    SettingsFile::parse(&enabled.join("\n")).unwrap();
}

#[test]
fn flags_win_over_the_file() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, "[serve]\nhttp = '127.0.0.1:1'\nadmin = '127.0.0.1:2'\n").unwrap();
    let line = [
        "runtime",
        "serve",
        "--http=127.0.0.1:3",
        "--config",
        path.to_str().unwrap(),
    ];
    let matches = completed(line.map(OsString::from).to_vec()).unwrap().unwrap();
    let (_, serve) = matches.subcommand().unwrap();
    let address = |id: &str| serve.get_one::<std::net::SocketAddr>(id).unwrap().port();
    assert_eq!((address("http"), address("admin")), (3, 2));
}

#[test]
fn options_that_are_read_again_are_those_of_the_changed_file() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("settings.toml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write("log = 'warn'\n[serve]\ndiscovery = 'static://a:1'\ngrace_s = 3\n");
    let arguments = ["runtime", "serve", "--http=127.0.0.1:1", "--config"].map(OsString::from);
    let arguments = arguments.into_iter().chain([path.clone().into_os_string()]);
    let mut running = RunningOptions::of(arguments.collect()).unwrap();
    assert_eq!(running.changes(&running.read_again().unwrap()), [""; 0]);

    write(
        "log = 'debug'\n[serve]\ndiscovery = ['static://a:1', 'static://b:1']\nhttp = '127.0.0.1:2'\nlog_json = true\n",
    );
    let read = running.read_again().unwrap();
    // The address is given on the command line, so the file changes nothing.
    assert_eq!(
        running.changes(&read),
        ["discovery", "grace_s", "log", "log_json"]
    );
    assert_eq!(read.cli().unwrap().log, "debug");
    running.take_over("log", &read);
    assert_eq!(running.changes(&read), ["discovery", "grace_s", "log_json"]);

    write("[serve]\ngrace_s = 'soon'\n");
    let refusal = format!("{:#}", running.read_again().unwrap_err());
    assert!(refusal.contains("grace_s"), "{refusal}");
    std::fs::remove_file(&path).unwrap();
    assert!(running.read_again().is_err());
}
