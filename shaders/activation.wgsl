// The gate's activation and its derivative. ACT 0: SiLU, 1: GELU by its tanh approximation.

fn sigmoid(v: f32) -> f32 {
    return 1.0 / (1.0 + exp(-v));
}

// tanh that neither overflows nor loses small arguments: drivers build theirs from exp(2x).
fn tanh_safe(v: f32) -> f32 {
    let a = abs(v);
    if a < 0.05 {
        let q = v * v;
        return v * (1.0 - q * (1.0 / 3.0 - q * (2.0 / 15.0 - q * (17.0 / 315.0))));
    }
    let e = exp(-2.0 * a);
    return sign(v) * (1.0 - e) / (1.0 + e);
}

fn act(v: f32) -> f32 {
#if ACT == 0
    return v * sigmoid(v);
#endif
#if ACT == 1
    return 0.5 * v * (1.0 + tanh_safe(0.7978845608028654 * (v + 0.044715 * v * v * v)));
#endif
}

fn act_slope(v: f32) -> f32 {
#if ACT == 0
    let s = sigmoid(v);
    return s * (1.0 + v * (1.0 - s));
#endif
#if ACT == 1
    let t = tanh_safe(0.7978845608028654 * (v + 0.044715 * v * v * v));
    return 0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * v * v);
#endif
}
