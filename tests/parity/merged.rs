//! A merged checkpoint beside base and adapter apart.

use candle_core::DType;
use detoxd::model::layers::Adaptation;
use detoxd::model::merge::merge;
use detoxd::model::weights::{ModelFiles, Purpose};

use crate::tiny;

#[test]
fn a_merged_checkpoint_gives_the_logits_of_base_and_adapter() {
    for name in ["tied", "untied"] {
        let decoder = tiny::decoder(name, Purpose::ServeDense);
        let adapter = tiny::adapter(&decoder);
        let ids = tiny::sequences(&[9, 5], 4);
        let want = tiny::packed_logits(&decoder, &ids, Adaptation::Lora(&adapter));
        let base = tiny::packed_logits(&decoder, &ids, Adaptation::Base);
        let effect = tiny::largest_difference(&base, &want);
        // In the base's own types, bf16 for one, and in single precision.
        for dtype in [None, Some(DType::F32)] {
            let parent = tempfile::tempdir().unwrap();
            let out = parent.path().join("merged");
            merge(&tiny::folder(name), &tiny::folder("adapter"), &out, dtype).unwrap();
            let merged = ModelFiles::open(&out)
                .unwrap()
                .load(Purpose::ServeDense, decoder.device())
                .unwrap();
            let got = tiny::packed_logits(&merged, &ids, Adaptation::Base);
            let tolerance = if name == "untied" && dtype.is_none() {
                effect / 20.0
            } else {
                1e-4
            };
            println!(
                "{name}, {dtype:?}: {}, the adapter does {effect}",
                tiny::largest_difference(&got, &want)
            );
            tiny::assert_close(&got, &want, tolerance, name);
            assert!(effect > 1.0);

            let tokenizer = |folder: &std::path::Path| std::fs::read(folder.join("tokenizer.json")).unwrap();
            assert_eq!(tokenizer(&out), tokenizer(&tiny::folder(name)));
            let again = merge(&tiny::folder(name), &tiny::folder("adapter"), &out, dtype);
            assert!(
                again.unwrap_err().to_string().contains("merged"),
                "nothing is written over"
            );
            if name == "untied" && dtype.is_some() {
                let index = std::fs::read_to_string(out.join("model.safetensors.index.json")).unwrap();
                let index: serde_json::Value = serde_json::from_str(&index).unwrap();
                let config = std::fs::read_to_string(out.join("config.json")).unwrap();
                assert_eq!(index["metadata"]["total_size"].as_u64().unwrap() % 4, 0);
                assert!(config.contains("\"torch_dtype\": \"float32\""), "{config}");
            }
        }
    }
}
