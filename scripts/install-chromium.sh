#!/usr/bin/env bash
# Installs Debian's Chromium and a font with Chinese characters, for the tests that look
# at pages as a person does. Does nothing where both are there, or where there is no apt
# or no right to use it: those tests then say why they are skipped.
set -euo pipefail

has_browser() { command -v chromium >/dev/null; }
has_font() { fc-list :lang=zh-cn 2>/dev/null | grep -q .; }

if has_browser && has_font; then exit 0; fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
	echo "install-chromium: no apt-get, or not root; tests in a browser will be skipped" >&2
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
packages=(chromium fonts-wqy-microhei fontconfig)
apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null 2>&1 ||
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null; }
