//! Pulls from a hub that behaves, and from one that does not.

#[path = "support/hub.rs"]
mod hub;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use hub::{Action, Gate, Hub, safetensors};
use sedge_store::{
    Event, HttpError, Kind, Options, PullError, Pulled, Reference, Store, StoreError, pull,
};

/// A store in a folder of its own.
fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("home"));
    (dir, store)
}

fn options(hub: &Hub) -> Options {
    Options {
        endpoint: hub.endpoint(),
        pause: Duration::from_millis(1),
        ..Options::default()
    }
}

fn take(store: &Store, hub: &Hub, reference: &str) -> Result<Pulled, PullError> {
    take_with(store, &options(hub), reference)
}

fn take_with(store: &Store, options: &Options, reference: &str) -> Result<Pulled, PullError> {
    let reference = Reference::parse(reference).unwrap();
    pull(store, &reference, options, &|_| {})
}

/// 3 MB in twelve tensors.
fn weights() -> Vec<u8> {
    let names: Vec<String> = (0..12).map(|i| format!("layer.{i}")).collect();
    let tensors: Vec<(&str, u64)> = names
        .iter()
        .zip(1..)
        .map(|(n, i)| (n.as_str(), i))
        .collect();
    safetensors(&tensors, 64 << 10)
}

fn model(hub: &Hub) -> Vec<u8> {
    let weights = weights();
    hub.large("model.safetensors", weights.clone());
    hub.small("config.json", "{}");
    hub.large("tokenizer.json", r#"{"a": 1}"#);
    hub.small("README.md", "not taken");
    weights
}

/// The store holds this safetensors file under this name.
fn assert_holds(store: &Store, name: &str, weights: &[u8]) {
    let stored = store.load(name).unwrap();
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let mut at = header;
    for bytes in &stored.tensors {
        assert_eq!(bytes[..], weights[at..at + bytes.len()]);
        at += bytes.len();
    }
    assert_eq!(at, weights.len());
    assert_eq!(stored.files["config.json"], "{}");
    assert!(store.verify(&|_, _| {}).unwrap().damaged.is_empty());
}

/// Nothing is left of the way into the store.
fn assert_tidy(store: &Store) {
    let usage = store.usage().unwrap();
    assert_eq!((usage.unused, usage.partial), (0, 0));
}

fn nth(
    action: Action,
    which: impl Fn(usize) -> bool + Send + Sync + 'static,
) -> impl Fn(&hub::Request) -> Action + Send + Sync {
    let count = AtomicUsize::new(0);
    move |request| match request.cdn && request.path.contains("model.safetensors") {
        true if which(count.fetch_add(1, Ordering::SeqCst)) => action.clone(),
        _ => Action::Serve,
    }
}

#[test]
fn a_model_comes_whole_and_is_not_fetched_again() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    let pulled = take(&store, &hub, "hf:org/tiny").unwrap();
    assert_eq!(
        (pulled.name.as_str(), pulled.manifest.kind),
        ("tiny", Kind::Model)
    );
    assert_eq!(
        pulled.manifest.origin.revision.as_deref(),
        Some(hub::COMMIT)
    );
    assert_eq!(pulled.manifest.files.len(), 3);
    assert_eq!(pulled.fetched, weights.len() as u64 + 2 + 8);
    assert_holds(&store, "tiny", &weights);
    assert_tidy(&store);

    hub.log();
    let again = take(&store, &hub, "hf:org/tiny").unwrap();
    assert_eq!(again.fetched, 0);
    assert_eq!(hub.log().len(), 1, "only the list is asked for");
    // Another repository with the same files, too.
    assert_eq!(take(&store, &hub, "hf:other/mirror").unwrap().fetched, 0);
    let usage = store.usage().unwrap();
    assert_eq!(usage.each.len(), 2);
    assert!(usage.each.iter().all(|u| u.own == 0 && u.shared > 0));
}

#[test]
fn equal_tensors_are_kept_once_across_models_and_containers() {
    let (hub, (dir, store)) = (Hub::start(), store());
    let shared: Vec<(&str, u64)> = vec![("a", 1), ("b", 2), ("c", 3), ("d", 4)];
    let mut tuned = shared.clone();
    tuned[3].1 = 99;
    hub.large("model.safetensors", safetensors(&shared, 1024));
    hub.small("config.json", "{}");
    take(&store, &hub, "hf:org/base").unwrap();
    hub.large("model.safetensors", safetensors(&tuned, 1024));
    take(&store, &hub, "hf:org/tuned").unwrap();
    let usage = store.usage().unwrap();
    assert_eq!(usage.blobs, 5 * 4096 + 2);
    let tuned = usage.each.iter().find(|u| u.name == "tuned").unwrap();
    assert_eq!((tuned.own, tuned.shared), (4096, 3 * 4096 + 2));

    // The same tensors in a GGUF file: its header is new, and nothing else.
    let bytes = safetensors(&shared, 1024);
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let plans: Vec<sedge_formats::gguf::TensorPlan> = ["a", "b", "c", "d"]
        .map(|name| sedge_formats::gguf::TensorPlan {
            name: name.into(),
            dtype: sedge_kernels::DType::F32,
            shape: vec![1024],
        })
        .into();
    let path = dir.path().join("same.gguf");
    let fill = |i: usize| -> std::io::Result<bytes::Bytes> {
        Ok(bytes[header + i * 4096..][..4096].to_vec().into())
    };
    sedge_formats::gguf::write(&path, &Default::default(), &plans, fill).unwrap();
    let before = store.usage().unwrap().blobs;
    let same = take(&store, &hub, path.to_str().unwrap()).unwrap();
    assert_eq!(same.name, "same");
    let head = same.manifest.files[0].blob.unwrap().len;
    assert_eq!(store.usage().unwrap().blobs, before + head);

    // One mapping for one blob, whoever opens it.
    let (base, same) = (store.load("base").unwrap(), store.load("same").unwrap());
    for (a, b) in base.tensors.iter().zip(&same.tensors) {
        assert_eq!(a.as_ptr(), b.as_ptr());
    }
}

#[test]
fn removing_says_what_collecting_frees() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    hub.small("config.json", "{}");
    hub.large("model.safetensors", safetensors(&[("a", 1), ("b", 2)], 256));
    take(&store, &hub, "hf:org/one").unwrap();
    hub.large("model.safetensors", safetensors(&[("a", 1), ("b", 3)], 256));
    take(&store, &hub, "hf:org/two").unwrap();
    assert!(matches!(
        store.remove(&["one", "tow"]),
        Err(StoreError::NotFound { close, .. }) if close == ["two"]
    ));
    assert_eq!(store.names().unwrap(), ["one", "two"]);
    assert_eq!(store.remove(&["one"]).unwrap(), 1024);
    let mapped = store.load("two").unwrap();
    let freed = store.collect(SystemTime::now(), Duration::ZERO).unwrap();
    assert_eq!((freed.blobs, freed.bytes), (1, 1024));
    assert_eq!(store.remove(&["two"]).unwrap(), 2048 + 2);
    store.collect(SystemTime::now(), Duration::ZERO).unwrap();
    assert_eq!(store.usage().unwrap().blobs, 0);
    // What is mapped stays readable.
    assert_eq!(mapped.tensors[0].len(), 1024);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    model(&hub);
    let options = Options {
        token: Some("hf_secret".into()),
        ..options(&hub)
    };
    take_with(&store, &options, "hf:org/tiny").unwrap();
    let log = hub.log();
    assert!(log.iter().any(|r| r.cdn));
    for request in log {
        let sent = request.authorization.is_some();
        assert_eq!(sent, !request.cdn, "{request:?}");
    }
}

#[test]
fn a_refusal_for_a_while_is_waited_out_and_one_for_good_is_told() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    let count = AtomicUsize::new(0);
    hub.script(move |request| {
        match (
            request.path.contains("/api/"),
            count.fetch_add(1, Ordering::SeqCst),
        ) {
            (_, 0) => Action::Status(429, "retry-after: 0"),
            (_, 1) => Action::Status(503, ""),
            (false, 3) => Action::Status(500, ""),
            (false, 5) => Action::Status(429, "retry-after: 0"),
            _ => Action::Serve,
        }
    });
    let waits = AtomicUsize::new(0);
    let reference = Reference::parse("hf:org/tiny").unwrap();
    pull(&store, &reference, &options(&hub), &|event| {
        if let Event::Waiting { .. } = event {
            waits.fetch_add(1, Ordering::SeqCst);
        }
    })
    .unwrap();
    assert_eq!(waits.load(Ordering::SeqCst), 4);
    assert_holds(&store, "tiny", &weights);

    for status in [401, 403, 404] {
        hub.script(move |_| Action::Status(status, ""));
        assert!(matches!(
            take(&store, &hub, "hf:org/private"),
            Err(PullError::Http { source: HttpError::Status { status: s, .. }, .. }) if s == status
        ));
    }
    // Always too many: given up in the end.
    hub.log();
    hub.script(|_| Action::Status(429, "retry-after: 0"));
    assert!(take(&store, &hub, "hf:org/busy").is_err());
    assert_eq!(hub.log().len(), 6);
    assert_holds(&store, "tiny", &weights);
}

#[test]
fn what_breaks_off_goes_on_where_it_broke() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    hub.script(nth(Action::Truncate(1_000_000), |_| true));
    take(&store, &hub, "hf:org/tiny").unwrap();
    assert_holds(&store, "tiny", &weights);
    let mut ranges: Vec<(u64, u64)> = hub
        .log()
        .into_iter()
        .filter(|r| r.cdn && r.path.contains("model"))
        .filter_map(|r| r.range)
        .collect();
    ranges.sort();
    // Each starts where the one before broke off; nothing comes twice.
    let starts: Vec<u64> = ranges.iter().map(|(start, _)| *start).collect();
    assert_eq!(starts[..3], [0, 1_000_000, 1 << 20], "{ranges:?}");
    assert!(starts.is_sorted_by(|a, b| a < b), "{ranges:?}");
}

#[test]
fn an_interrupted_pull_is_resumed_by_the_next() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    // It breaks off, and then the hub is gone.
    let count = AtomicUsize::new(0);
    hub.script(move |request| {
        if !(request.cdn && request.path.contains("model.safetensors")) {
            return Action::Serve;
        }
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Action::Serve, // the header
            1 => Action::Truncate(1_200_000),
            _ => Action::Status(404, ""),
        }
    });
    assert!(take(&store, &hub, "hf:org/tiny").is_err());
    assert!(matches!(
        store.load("tiny"),
        Err(StoreError::NotFound { .. })
    ));
    assert!(store.usage().unwrap().partial > 2_000_000);
    // Collecting keeps what may go on.
    store
        .collect(SystemTime::now(), Duration::from_secs(3600))
        .unwrap();
    hub.script(|_| Action::Serve);
    hub.log();
    let pulled = take(&store, &hub, "hf:org/tiny").unwrap();
    assert!(pulled.fetched < 1_000_000, "{}", pulled.fetched);
    assert!(hub.log().iter().any(|r| r.if_range.is_some()));
    assert_holds(&store, "tiny", &weights);
    assert_tidy(&store);
}

#[test]
fn what_is_damaged_on_the_way_is_fetched_again() {
    let (hub, (dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    let count = AtomicUsize::new(0);
    hub.script(move |request| {
        if !(request.cdn && request.path.contains("model.safetensors")) {
            return Action::Serve;
        }
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Action::Serve,
            1 => Action::Truncate(1_200_000),
            _ => Action::Status(404, ""),
        }
    });
    assert!(take(&store, &hub, "hf:org/tiny").is_err());
    // As if the power had gone before the first piece was on the disk.
    let partial = dir.path().join("home/partial").join(hub::sha256(&weights));
    let piece = partial.join("p0");
    let len = std::fs::metadata(&piece).unwrap().len();
    std::fs::write(&piece, vec![0; len as usize]).unwrap();
    std::fs::remove_file(partial.join("p1")).unwrap();
    hub.script(|_| Action::Serve);
    take(&store, &hub, "hf:org/tiny").unwrap();
    assert_holds(&store, "tiny", &weights);
}

#[test]
fn a_file_that_changes_is_begun_again() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    hub.small("config.json", "{}");
    let weights = weights();
    hub.large("model.safetensors", weights.clone());
    // The second part is of another file, for once.
    let other = weights.clone();
    hub.script(nth(Action::Other(other), |n| n == 1));
    take(&store, &hub, "hf:org/tiny").unwrap();
    assert_holds(&store, "tiny", &weights);
    // The header came twice.
    let log = hub.log();
    let heads = log
        .iter()
        .filter(|r| r.cdn && r.range.is_some_and(|(s, _)| s == 0));
    assert_eq!(heads.count(), 2);

    // For ever: an error, not a loop.
    let (_dir, store) = self::store();
    let other = weights.clone();
    hub.script(nth(Action::Other(other), |n| n % 2 == 1));
    assert!(matches!(
        take(&store, &hub, "hf:org/tiny"),
        Err(PullError::Changed { .. })
    ));
}

#[test]
fn a_server_without_ranges_gives_the_file_all_the_same() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    hub.script(|request| match request.cdn {
        true => Action::Whole,
        false => Action::Serve,
    });
    take(&store, &hub, "hf:org/tiny").unwrap();
    assert_holds(&store, "tiny", &weights);
}

#[test]
fn a_list_without_sizes_and_hashes_is_made_good_by_headers() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    hub.small("generation_config.json", "");
    hub.without_hashes();
    let pulled = take(&store, &hub, "hf:org/tiny").unwrap();
    assert_eq!(pulled.manifest.files.len(), 4);
    assert_holds(&store, "tiny", &weights);
}

#[test]
fn a_hub_that_lies_is_not_believed() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    let wrong = "ab".repeat(32);
    hub.lie("model.safetensors", None, Some(&wrong));
    assert!(matches!(
        take(&store, &hub, "hf:org/tiny"),
        Err(PullError::Hash { expected, .. }) if expected == wrong
    ));
    for lie in [
        weights.len() as u64 - 1,
        weights.len() as u64 + 1,
        9,
        1 << 40,
    ] {
        model(&hub);
        hub.lie("model.safetensors", Some(lie), None);
        let error = take(&store, &hub, "hf:org/tiny").unwrap_err();
        assert!(
            matches!(error, PullError::Size { .. } | PullError::Layout { .. }),
            "{lie}: {error}"
        );
    }
    model(&hub);
    hub.script(nth(Action::Corrupt, |_| true));
    assert!(matches!(
        take(&store, &hub, "hf:org/tiny"),
        Err(PullError::Hash { .. })
    ));
    hub.script(|_| Action::Serve);
    hub.lie("config.json", None, Some(&"cd".repeat(20)));
    assert!(matches!(
        take(&store, &hub, "hf:org/tiny"),
        Err(PullError::Hash { file, .. }) if file == "config.json"
    ));
    assert!(store.names().unwrap().is_empty());
    // And nothing of it stands in the way of the truth.
    model(&hub);
    take(&store, &hub, "hf:org/tiny").unwrap();
    assert_holds(&store, "tiny", &weights);
}

#[test]
fn malformed_files_are_refused_by_their_headers() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    hub.small("config.json", "{}");
    for bytes in [
        b"".to_vec(),
        b"short".to_vec(),
        vec![0xff; 4096],
        [&100u64.to_le_bytes()[..], &[b'{'; 100]].concat(),
    ] {
        hub.large("model.safetensors", bytes);
        let error = take(&store, &hub, "hf:org/bad").unwrap_err();
        assert!(matches!(error, PullError::Layout { .. }), "{error}");
    }
    hub.large("x.gguf", b"GGUF".repeat(10));
    assert!(matches!(
        take(&store, &hub, "hf:org/bad:x.gguf"),
        Err(PullError::Layout { .. })
    ));
}

#[test]
fn names_of_a_hostile_hub_stay_inside() {
    let (hub, (dir, store)) = (Hub::start(), store());
    hub.small("config.json", "{}");
    for shard in [
        "../../evil.safetensors",
        "/tmp/evil.safetensors",
        "a/../../evil",
    ] {
        let index = format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#);
        hub.small("model.safetensors.index.json", index);
        hub.large(shard, weights());
        assert!(take(&store, &hub, "hf:org/evil").is_err());
    }
    hub.large("../evil.gguf", b"GGUF".to_vec());
    let named = Reference::parse("hf:org/evil:../evil.gguf");
    assert!(named.is_err());
    assert!(take(&store, &hub, "hf:org/evil:evil").is_err());
    let outside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert!(outside.len() <= 1, "{outside:?}");
    // Odd characters, where they are harmless, are encoded on the way.
    let gguf = std::fs::read(seedling()).unwrap();
    hub.large("dir%20x/odd%2B%C3%A9%20%231.gguf", gguf);
    let reference = Reference::parse("hf:org/odd:dir x/odd+é #1.gguf").unwrap();
    let error = pull(&store, &reference, &options(&hub), &|_| {}).unwrap_err();
    // The list of this hub has the encoded name, so it is the name that is not found.
    assert!(matches!(error, PullError::NoFile { .. }), "{error}");
}

fn seedling() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../assets/seedling/seedling.gguf"
    ))
}

#[test]
fn a_quantisation_is_pulled_by_its_name() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    let gguf = std::fs::read(seedling()).unwrap();
    hub.large("m-Q8_0.gguf", gguf.clone());
    hub.large("m-Q4_K_M.gguf", b"GGUF".to_vec());
    assert!(matches!(
        take(&store, &hub, "hf:org/m"),
        Err(PullError::Several { choices, .. }) if choices.len() == 2
    ));
    let pulled = take(&store, &hub, "hf:org/m:q8_0").unwrap();
    assert_eq!(pulled.name, "m-Q8_0");
    assert_eq!(pulled.manifest.origin.source, "hf:org/m:q8_0");
    let stored = store.load("m-Q8_0").unwrap();
    let whole = sedge_formats::gguf::Gguf::parse(gguf.into()).unwrap();
    for ((entry, bytes), (name, info)) in stored
        .manifest
        .tensors
        .iter()
        .zip(&stored.tensors)
        .zip(whole.tensors())
    {
        assert_eq!((&entry.name, bytes), (name, &whole.data(info)));
    }
}

#[test]
fn adapters_are_stored_as_what_they_are() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    hub.small("adapter_config.json", r#"{"peft_type":"LORA"}"#);
    hub.large(
        "adapter_model.safetensors",
        safetensors(&[("lora_A", 1)], 64),
    );
    let pulled = take(&store, &hub, "hf:org/lora").unwrap();
    assert_eq!(pulled.manifest.kind, Kind::Adapter);
    let stored = store.load("lora").unwrap();
    assert_eq!(
        stored.files["adapter_config.json"],
        r#"{"peft_type":"LORA"}"#
    );
    assert_eq!(stored.tensors.len(), 1);
}

#[test]
fn a_taken_name_is_not_given_away() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    model(&hub);
    take(&store, &hub, "hf:org/tiny").unwrap();
    assert!(matches!(
        take(&store, &hub, "hf:other/tiny"),
        Err(PullError::Taken { by, .. }) if by == "hf:org/tiny"
    ));
    let mut options = options(&hub);
    options.replace = true;
    take_with(&store, &options, "hf:other/tiny").unwrap();
    assert_eq!(
        store.manifest("tiny").unwrap().origin.source,
        "hf:other/tiny"
    );
    options.name = Some("--help".into());
    assert!(matches!(
        take_with(&store, &options, "hf:other/tiny"),
        Err(PullError::Name(_))
    ));
}

#[test]
fn exactly_what_is_damaged_is_repaired() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    let pulled = take(&store, &hub, "hf:org/tiny").unwrap();
    let file_of = |i: usize| {
        let hex = pulled.manifest.tensors[i].blob.hash.to_hex();
        store
            .root()
            .join("blobs")
            .join(&hex[..2])
            .join(hex.as_str())
    };
    // One is lost, one is cut short, one has a bit turned.
    std::fs::remove_file(file_of(1)).unwrap();
    std::fs::write(file_of(4), b"short").unwrap();
    let mut bytes = std::fs::read(file_of(7)).unwrap();
    bytes[99] ^= 1;
    std::fs::write(file_of(7), bytes).unwrap();
    match store.load("tiny") {
        Err(StoreError::Missing {
            count,
            first,
            origin,
            ..
        }) => {
            assert_eq!(
                (count, first.as_str(), origin.as_str()),
                (2, "layer.1", "hf:org/tiny")
            );
        }
        other => panic!("{other:?}"),
    }
    let verified = store.verify(&|_, _| {}).unwrap();
    let mut what: Vec<&str> = verified.damaged.iter().map(|d| d.what).collect();
    what.sort();
    assert_eq!(what, ["missing", "wrong content", "wrong length"]);
    assert!(verified.damaged.iter().all(|d| d.used_by == ["tiny"]));
    hub.log();
    let again = take(&store, &hub, "hf:org/tiny").unwrap();
    assert_eq!(again.fetched, 3 * (256 << 10));
    let asked = hub
        .log()
        .into_iter()
        .filter(|r| r.cdn)
        .filter_map(|r| r.range);
    assert_eq!(
        asked.map(|(start, end)| end + 1 - start).sum::<u64>(),
        3 * (256 << 10)
    );
    assert_holds(&store, "tiny", &weights);
    store.collect(SystemTime::now(), Duration::ZERO).unwrap();
    assert_holds(&store, "tiny", &weights);
}

#[test]
fn the_cache_of_other_programs_is_used_and_not_believed() {
    let (hub, (dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    let cache = dir.path().join("hub");
    let folder = cache.join("models--org--tiny");
    let blobs = folder.join("blobs");
    let snapshot = folder.join("snapshots").join(hub::COMMIT);
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(folder.join("refs")).unwrap();
    std::fs::write(folder.join("refs/main"), hub::COMMIT).unwrap();
    let hash = hub::sha256(&weights);
    std::fs::write(blobs.join(&hash), &weights).unwrap();
    let mut options = options(&hub);
    options.cache = Some(cache);
    let pulled = take_with(&store, &options, "hf:org/tiny").unwrap();
    assert_eq!(pulled.fetched, 2 + 8);
    assert_holds(&store, "tiny", &weights);

    // Offline, from its snapshot of links.
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(
            format!("../../blobs/{hash}"),
            snapshot.join("model.safetensors"),
        )
        .unwrap();
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        let (_dir, store) = self::store();
        let mut offline = options.clone();
        offline.offline = true;
        hub.log();
        take_with(&store, &offline, "hf:org/tiny").unwrap();
        assert!(hub.log().is_empty());
        assert_holds(&store, "tiny", &weights);
    }

    // Damaged: fetched.
    let mut damaged = weights.clone();
    damaged[100_000] ^= 1;
    std::fs::write(blobs.join(&hash), &damaged).unwrap();
    let (_dir, store) = self::store();
    let pulled = take_with(&store, &options, "hf:org/tiny").unwrap();
    assert!(pulled.fetched > 3_000_000);
    assert_holds(&store, "tiny", &weights);
}

#[test]
fn while_a_pull_runs_nothing_is_collected_and_everything_else_goes_on() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    hub.small("config.json", "{}");
    hub.large("model.safetensors", safetensors(&[("a", 1)], 256));
    take(&store, &hub, "hf:org/first").unwrap();
    let weights = model(&hub);
    let gate = Arc::new(Gate::default());
    hub.script(nth(Action::Hold(500_000, gate.clone()), |n| n == 1));
    std::thread::scope(|scope| {
        let pulling = scope.spawn(|| take(&store, &hub, "hf:org/tiny"));
        gate.wait_for(1);
        assert!(matches!(
            store.collect(SystemTime::now(), Duration::ZERO),
            Err(StoreError::Busy { .. })
        ));
        store.load("first").unwrap();
        store.verify(&|_, _| {}).unwrap();
        store.remove(&["first"]).unwrap();
        gate.open();
        pulling.join().unwrap().unwrap();
    });
    assert_holds(&store, "tiny", &weights);
    assert_eq!(store.names().unwrap(), ["tiny"]);
}

#[test]
fn two_pulls_of_one_model_fetch_it_once() {
    let (hub, (_dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    let gate = Arc::new(Gate::default());
    hub.script(nth(Action::Hold(500_000, gate.clone()), |n| n == 1));
    std::thread::scope(|scope| {
        let pulls = [1, 2].map(|_| scope.spawn(|| take(&store, &hub, "hf:org/tiny")));
        gate.wait_for(1);
        gate.open();
        for pull in pulls {
            pull.join().unwrap().unwrap();
        }
    });
    assert_holds(&store, "tiny", &weights);
    assert_tidy(&store);
}

#[test]
fn a_link_in_the_store_is_not_followed() {
    let (hub, (dir, store)) = (Hub::start(), store());
    let weights = model(&hub);
    let victim = dir.path().join("victim");
    std::fs::create_dir_all(&victim).unwrap();
    std::fs::write(victim.join("p0"), "precious").unwrap();
    let partial = store.root().join("partial");
    std::fs::create_dir_all(&partial).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&victim, partial.join(hub::sha256(&weights))).unwrap();
    assert!(take(&store, &hub, "hf:org/tiny").is_err());
    assert_eq!(std::fs::read(victim.join("p0")).unwrap(), b"precious");
}
