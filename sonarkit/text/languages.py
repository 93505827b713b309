"""Languages by FLORES-200 code, such as `eng_Latn`: three letters of ISO 639-3 and the script."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

_CODES = """
    ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab ars_Arab
    ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl
    bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn
    cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn
    est_Latn eus_Latn ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn
    gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn
    ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab
    kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn
    kon_Latn kor_Hang kmr_Latn lao_Laoo lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn
    lua_Latn lug_Latn luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn
    mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn nus_Latn
    nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn por_Latn prs_Arab pbt_Arab quy_Latn
    ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn
    sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn
    szl_Latn tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn
    tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn
    vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zul_Latn
"""
# SONAR's 202 languages in the order of its language tokens, which is NLLB's: FLORES-200 less arb_Latn and min_Arab,
# with sat_Olck under the name sat_Beng.
SONAR_LANGUAGES: tuple[str, ...] = tuple(_CODES.split())

# What people type for the major languages.
_ALIASES = {
    "en": "eng_Latn",
    "english": "eng_Latn",
    "fr": "fra_Latn",
    "french": "fra_Latn",
    "de": "deu_Latn",
    "ger": "deu_Latn",
    "german": "deu_Latn",
    "es": "spa_Latn",
    "spanish": "spa_Latn",
    "it": "ita_Latn",
    "pt": "por_Latn",
    "nl": "nld_Latn",
    "ru": "rus_Cyrl",
    "zh": "zho_Hans",
    "ja": "jpn_Jpan",
    "ko": "kor_Hang",
    "ar": "arb_Arab",
    "hi": "hin_Deva",
    "tr": "tur_Latn",
    "pl": "pol_Latn",
    "cs": "ces_Latn",
    "sv": "swe_Latn",
    "uk": "ukr_Cyrl",
    "vi": "vie_Latn",
}


class UnknownLanguageError(ValueError):
    """A language code that the model at hand does not know."""


def check_language(code: str, known: Sequence[str]) -> str:
    """Return `code` if it is one of `known`; else raise UnknownLanguageError naming up to three nearest of them."""
    if code in known:
        return code
    if code in SONAR_LANGUAGES or not (nearest := _nearest(code, known)):
        advice = f"known here are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
    else:
        advice = f"did you mean {' or '.join(nearest[:3])}?"
    raise UnknownLanguageError(f"unknown language {code!r}: {advice} (codes are FLORES-200's, {len(known)} of them known here)")


def _nearest(code: str, known: Sequence[str]) -> list[str]:
    """Codes that someone who typed `code` may mean, best first."""
    typed = code.lower().replace("-", "_")
    alias = _ALIASES.get(re.split("[_.]", typed)[0])  # of "en", "en-US", "fr_FR.UTF-8"
    return (
        [k for k in known if k.lower() == typed]
        or [k for k in known if k == alias]
        or [k for k in known if k[:3] == typed[:3]]
        or difflib.get_close_matches(code, known, n=3, cutoff=0.3)
    )


def per_text(lang: str | Sequence[str], count: int, known: Sequence[str]) -> list[str]:
    """One checked language code for each of `count` texts, from one code for all or one each."""
    codes = [lang] * count if isinstance(lang, str) else list(lang)
    if len(codes) != count:
        raise ValueError(f"one language code for all texts or one for each: got {len(codes)} codes for {count} texts")
    for code in {lang} if isinstance(lang, str) else set(codes):
        check_language(code, known)
    return codes
