//! Adapters in PEFT's layout, read for the model that they were made for.
//! See tests/golden/README.md for what the files hold.

mod common;

use common::{ADAPTERS, adapter, folder};
use sedge_models::{Acts, AdapterFacts, Model, open};

#[test]
fn every_checkpoint_is_read() {
    let Model::Decoder(llama) = open(&folder("llama")).unwrap().model else {
        panic!("llama is a decoder");
    };
    for name in ADAPTERS {
        let facts = AdapterFacts::read(&folder(&format!("peft/{name}"))).unwrap();
        let adapter = adapter(name, &llama);
        println!("{name}: {facts:?}, {} bytes in memory", adapter.bytes());
        assert_eq!(facts.base.as_deref(), Some("golden/llama"), "{name}");
        assert_eq!(facts.method, adapter.method(), "{name}");
        assert_eq!(facts.positions, adapter.positions(), "{name}");
        let before = matches!(facts.acts, Acts::KeysValues | Acts::Embeddings);
        assert_eq!(facts.merges, !before, "{name}");
        assert_eq!(adapter.merges(), !before, "{name}");
        assert!(adapter.bytes() > 0);
    }
}
