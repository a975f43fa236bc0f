# Homebrew formula. It builds from source: `brew install --build-from-source packaging/homebrew/zmlx.rb`.
# A release replaces VERSION, OWNER and the checksum (packaging/README.md).
class Zmlx < Formula
  desc "Runs MLX-quantised mixture-of-experts language models"
  homepage "https://github.com/OWNER/zmlx"
  url "https://github.com/OWNER/zmlx/archive/refs/tags/vVERSION.tar.gz"
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license any_of: ["MIT", "Apache-2.0"]

  depends_on "cmake" => :build
  depends_on "rust" => :build
  # MLX's kernels are compiled by `metal`, which only the full Xcode has.
  depends_on xcode: :build if OS.mac?

  def install
    system "cargo", "install", *std_cargo_args(path: "crates/zmlx-cli")
    metallib = Dir["target/release/build/**/mlx.metallib"].first
    return unless metallib

    # MLX looks for its compiled kernels beside the program.
    libexec.install bin/"zmlx", metallib
    bin.write_exec_script libexec/"zmlx"
  end

  test do
    assert_match "Bennet", shell_output("#{bin}/zmlx generate --quiet --max-tokens 100")
  end
end
