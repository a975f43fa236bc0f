// Functions of one, two and three arguments, in float, half and bfloat.
#include <metal_stdlib>
using namespace metal;

kernel void functions(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                      uint i [[thread_position_in_grid]]) {
  float x = in[i];
  device float* o = out + 16 * i;
  o[0] = metal::exp(x);
  o[1] = metal::precise::exp(x);
  o[2] = metal::fast::exp(x);
  o[3] = exp2(x);
  o[4] = log(abs(x));
  o[5] = precise::tanh(x);
  o[6] = rsqrt(fabs(x));
  o[7] = sqrt(fabs(x));
  o[8] = sin(x);
  o[9] = pow(fabs(x), 1.5);
  o[10] = floor(x);
  o[11] = ceil(x);
  o[12] = rint(x);
  o[13] = round(x);
  o[14] = trunc(x);
  o[15] = 1.0 / (1.0 + metal::exp(-x));
}

kernel void narrow_functions(device const float* in [[buffer(0)]], device ushort* out [[buffer(1)]],
                             uint i [[thread_position_in_grid]]) {
  half h = half(in[i]);
  bfloat b = bfloat(in[i]);
  out[4 * i] = as_type<ushort>(exp(h));
  out[4 * i + 1] = as_type<ushort>(exp(b));
  out[4 * i + 2] = as_type<ushort>(fma(h, h, h));
  out[4 * i + 3] = as_type<ushort>(fma(b, b, b));
}

// A product that is not exact in float, and its sum: fused or not, the bits differ.
kernel void contraction(device const float* in [[buffer(0)]], device float* out [[buffer(1)]]) {
  float a = in[0], b = in[1], c = in[2];
  out[0] = a * b + c;
  out[1] = fma(a, b, c);
}

kernel void selections(device const float* in [[buffer(0)]], device float* out [[buffer(1)]]) {
  float nan = in[0], one = in[1], two = in[2];
  out[0] = max(nan, one);
  out[1] = max(one, nan);
  out[2] = min(nan, one);
  out[3] = fmax(one, two);
  out[4] = select(one, two, true);
  out[5] = select(one, two, false);
  out[6] = clamp(5.0f, one, two);
  out[7] = mix(one, two, 0.25f);
  out[8] = sign(-two);
  out[9] = saturate(two);
  out[10] = fract(2.75f);
  out[11] = fmod(-5.5f, two);
  out[12] = copysign(two, -one);
  out[13] = step(one, two);
  out[14] = min3(two, one, 3.0f);
  out[15] = ldexp(one, 3);
}
