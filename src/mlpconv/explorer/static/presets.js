// The statements that people read about 1x1 convolutions, each as a playground that shows what is true of it.

export const PRESETS = [
  {
    id: "one-channel",
    title: "6 × 6 × 1: multiplication by a number",
    text: "On one channel a 1×1 convolution only multiplies every value by one weight and adds a bias. That is why it looks useless at first.",
    values: {in: "6x6x1", data: "mixed", a: "c1.1", w: "a0.0:2,a0.b0:0"},
  },
  {
    id: "many-channels",
    title: "6 × 6 × 32: a fully connected layer at every position",
    text: "On 32 channels each output value is a weighted sum of the 32 values at its position. Every filter is one neuron with 32 inputs, moved over all positions.",
    values: {in: "6x6x32", data: "mixed", a: "c1.4-r"},
  },
  {
    id: "all-channels",
    title: "Not each channel by itself",
    text: "It is often written that a 1×1 convolution is applied to each channel independently. The opposite is true: above, it mixes all channels. Below, with one group per channel, each output reads one channel only.",
    values: {in: "5x5x4", data: "mixed", a: "c1.4", b: "c1.4.g4"},
  },
  {
    id: "cat-dog",
    title: "Cat minus dog",
    text: "Two feature maps, of a cat detector and of a dog detector. The weights 1 and −1 subtract one from the other; ReLU keeps the places where there is more cat than dog.",
    values: {in: "6x6x2", data: "detectors", a: "c1.1-r", w: "a0.0:1,a0.1:-1,a0.b0:0"},
  },
  {
    id: "same-size",
    title: "28 × 28 × 192 with 192 filters",
    text: "As many filters as channels: the shape stays, and the network gains a layer that mixes channels and one more nonlinearity.",
    values: {in: "28x28x192", data: "mixed", a: "c1.192-r"},
  },
  {
    id: "shrink",
    title: "28 × 28 × 192 to 32 channels",
    text: "Pooling makes rows and columns fewer. A 1×1 convolution with 32 filters makes the channels fewer and leaves rows and columns alone.",
    values: {in: "28x28x192", data: "mixed", a: "c1.32-r"},
  },
  {
    id: "two-hundred",
    title: "200 × 200 × 50 with 20 filters",
    text: "The output is 200 × 200 × 20. The number of weights, 50 × 20 and 20 biases, does not depend on the size of the image; the multiply-adds do.",
    values: {in: "200x200x50", data: "mixed", a: "c1.20"},
  },
  {
    id: "three-beside-one",
    title: "3 × 3 beside 1 × 1",
    text: "The same input and the same number of filters. The 3×3 reads nine positions and has nine times the weights and multiply-adds; the 1×1 reads one position.",
    values: {in: "6x6x8", data: "mixed", a: "c3.4.p1", b: "c1.4"},
  },
  {
    id: "stride",
    title: "1 × 1 with stride 2",
    text: "With stride 2 a 1×1 convolution reads every second row and column. Three quarters of the input are never read, which no 3×3 with stride 2 does.",
    values: {in: "8x8x3", data: "mixed", a: "c1.4.s2", b: "c3.4.s2.p1"},
  },
  {
    id: "max-pool",
    title: "With max pooling, before or after",
    text: "A 1×1 convolution after the pool costs a quarter of one before it. The outputs differ: the largest value of a sum is not the sum of the largest values.",
    values: {in: "8x8x4", data: "mixed", a: "c1.4-r-m2.2", b: "m2.2-c1.4-r"},
  },
  {
    id: "mlpconv",
    title: "Linear convolution beside mlpconv",
    text: "Above, a convolution and ReLU: a linear filter with a threshold. Below, an mlpconv layer of Network In Network: two 1×1 convolutions follow, so that a small multilayer perceptron slides over the image.",
    values: {in: "7x7x3", data: "mixed", a: "c3.6-r", b: "c3.6-r-c1.6-r-c1.4-r"},
  },
  {
    id: "fully-connected",
    title: "Fully connected as a convolution",
    text: "A fully connected layer on 4 × 4 × 3 is a convolution whose kernel covers the whole input: the same weights, the same numbers. On a larger input the convolution still works and gives a map.",
    values: {in: "4x4x3", data: "mixed", a: "f-l5-r", b: "c4.5-r"},
  },
  {
    id: "fully-connected-1x1",
    title: "Fully connected as 1 × 1",
    text: "On a 1 × 1 × 16 input a fully connected layer and a 1×1 convolution are the same computation.",
    values: {in: "1x1x16", data: "mixed", a: "f-l8-r-l4", b: "c1.8-r-c1.4"},
  },
  {
    id: "inception",
    title: "Inception: 1 × 1 before 5 × 5",
    text: "28 × 28 × 192 to 32 channels by a 5×5 costs 120 million multiply-adds. With a 1×1 to 16 channels first it costs 12.4 million, a tenth.",
    values: {in: "28x28x192", data: "mixed", a: "c5.32.p2", b: "c1.16-r-c5.32.p2"},
  },
  {
    id: "separable",
    title: "Depthwise, then 1 × 1",
    text: "A depthwise 3×3 looks at each channel by itself; the 1×1 after it mixes the channels. Together they cost a fraction of a full 3×3.",
    values: {in: "8x8x8", data: "mixed", a: "c3.16.p1", b: "c3.8.p1.g8-c1.16"},
  },
  {
    id: "edge",
    title: "A 3 × 3 that finds an edge",
    text: "What a 1×1 cannot do: compare a position with its neighbours. The columns 1, 0 and −1 of this kernel find the vertical edge.",
    values: {
      in: "6x6x1",
      data: "edge",
      a: "c3.1",
      w: "a0.0:1,a0.1:0,a0.2:-1,a0.3:1,a0.4:0,a0.5:-1,a0.6:1,a0.7:0,a0.8:-1,a0.b0:0",
    },
  },
];
