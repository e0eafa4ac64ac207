use std::sync::Arc;

use candle_core::{DType, Tensor};
use detoxd::model::Decoder;
use detoxd::model::layers::Adaptation;
use detoxd::model::weights::Purpose;

use crate::tiny;

/// Within this of what transformers and PEFT give.
const RECORDED: f32 = 1e-3;
/// Two ways of computing the same thing here.
const SAME: f32 = 1e-4;

/// Logits of the sequences, each in a cache of its own.
fn by_cache(decoder: &Decoder, sequences: &[Vec<u32>], adaptation: impl Fn(usize) -> Tensor) -> Tensor {
    let logits: Vec<Tensor> = (0..sequences.len()).map(adaptation).collect();
    assert_eq!(logits[0].dims()[1], decoder.config().vocab_size);
    Tensor::cat(&logits, 0).unwrap()
}

#[test]
fn tied_and_untied_models_give_the_recorded_logits() {
    for variant in ["tied", "untied"] {
        let decoder = tiny::decoder(variant, Purpose::ServeDense);
        let (ids, want) = tiny::recorded_logits(variant);
        let packed = tiny::packed_logits(&decoder, &ids, Adaptation::Base);
        println!("{variant}: {}", tiny::largest_difference(&packed, &want));
        tiny::assert_close(&packed, &want, RECORDED, variant);
        let cached = by_cache(&decoder, &ids, |index| {
            tiny::cached_logits(&decoder, &mut tiny::cache(&decoder), &ids[index], Adaptation::Base)
        });
        tiny::assert_close(&cached, &packed, SAME, variant);
    }
}

#[test]
fn an_adapter_gives_the_logits_of_peft() {
    let decoder = tiny::tied();
    let adapter = Arc::new(tiny::adapter(&decoder));
    let (ids, want) = tiny::recorded_logits("adapter");
    let packed = tiny::packed_logits(&decoder, &ids, Adaptation::Lora(&adapter));
    println!("adapter: {}", tiny::largest_difference(&packed, &want));
    tiny::assert_close(&packed, &want, RECORDED, "packed");
    let cached = by_cache(&decoder, &ids, |index| {
        let spans = tiny::span(&adapter, ids[index].len(), 1.0);
        let adaptation = Adaptation::Mixed(&spans);
        tiny::cached_logits(&decoder, &mut tiny::cache(&decoder), &ids[index], adaptation)
    });
    tiny::assert_close(&cached, &want, RECORDED, "cached");
    tiny::assert_close(&cached, &packed, SAME, "cached against packed");
    let (_, base) = tiny::recorded_logits("tied");
    assert!(
        tiny::largest_difference(&want, &base) > 0.1,
        "the adapter changes too little to test anything"
    );
}

#[test]
fn training_weights_give_the_recorded_logits() {
    let (ids, want) = tiny::recorded_logits("adapter");
    // Products in bf16 carry 8 bits; where the processor has none, f32 stands in.
    for (dtype, tolerance) in [(DType::F32, RECORDED), (DType::BF16, 0.15)] {
        let decoder = tiny::decoder("tied", Purpose::Train { dtype });
        let adapter = tiny::adapter(&decoder);
        let got = tiny::packed_logits(&decoder, &ids, Adaptation::Lora(&adapter));
        println!("training in {dtype:?}: {}", tiny::largest_difference(&got, &want));
        tiny::assert_close(&got, &want, tolerance, "training");
    }
}

#[test]
fn quantised_weights_stay_close() {
    for variant in ["tied", "untied"] {
        let decoder = tiny::decoder(variant, Purpose::ServeQuantized);
        let (ids, want) = tiny::recorded_logits(variant);
        let got = tiny::packed_logits(&decoder, &ids, Adaptation::Base);
        let root_mean_square = |x: &Tensor| {
            let mean = x.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
            mean.sqrt()
        };
        let relative = root_mean_square(&(&got - &want).unwrap()) / root_mean_square(&want);
        println!(
            "{variant}, 8-bit: at most {}, {relative} of the logits' size on average",
            tiny::largest_difference(&got, &want)
        );
        // Eight bits for weights and for activations, about half a percent of noise each in every product.
        assert!(relative < 0.05, "{variant}: {relative}");
        let cached = by_cache(&decoder, &ids, |index| {
            tiny::cached_logits(&decoder, &mut tiny::cache(&decoder), &ids[index], Adaptation::Base)
        });
        tiny::assert_close(&cached, &got, SAME, variant);
    }
}
